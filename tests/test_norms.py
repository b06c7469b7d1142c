"""The norms against their formulas, written out in float64, and against torch's own layers."""

import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from fedlib import norms

SHAPES = [(5, 6), (5, 6, 4, 3)]
PER_SAMPLE = {"layer": norms.MeanVarNorm(6, affine=False), "feature": norms.ScaleNorm(), "shift": norms.MeanShift()}


def sample(shape, seed=0, dtype=torch.float64):
    return 2 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_formulas(shape, channels_last):
    x = sample(shape)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    for row, layer, scale, shift in zip(x, *(norm(x) for norm in PER_SAMPLE.values()), strict=True):
        v = row.flatten()
        mean, variance = v.mean(), ((v - v.mean()) ** 2).mean()
        torch.testing.assert_close(layer.flatten(), (v - mean) / (variance + 1e-5).sqrt())
        torch.testing.assert_close(scale.flatten(), math.sqrt(len(v)) * v / (v * v).sum().sqrt())
        torch.testing.assert_close(shift.flatten(), v - mean)


def test_worked_by_hand():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]], dtype=torch.float64)  # length 5, d = 4
    torch.testing.assert_close(norms.ScaleNorm()(x), torch.tensor([[1.2, 1.6, 0, 0]], dtype=torch.float64))
    x = torch.tensor([[1.0, 1.0, 5.0, 5.0]], dtype=torch.float64)  # mean 3, population sigma 2
    expected = torch.tensor([[-1.0, -1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(norms.MeanShift()(x), 2 * expected)
    torch.testing.assert_close(norms.MeanVarNorm(4, affine=False, eps=0.0)(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_is_torchs(shape):
    x, ours = sample(shape), norms.MeanVarNorm(6).double()
    with torch.no_grad():
        ours.weight.copy_(sample((6,), 1))
        ours.bias.copy_(sample((6,), 2))
    theirs = (nn.LayerNorm(6) if len(shape) == 2 else nn.GroupNorm(1, 6)).double()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", ["layer", "feature"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_equivariance(kind, shape):
    """n(c x) = n(x) for every c > 0, of its own for each sample; the shift scales with c."""
    x = sample(shape)
    c = torch.tensor([0.5, 1, 2, 30, 400], dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    norm = norms.norm_layer(kind, 6, spatial=x.dim() == 4, affine=False, eps=1e-12)
    torch.testing.assert_close(norm(c * x), norm(x))
    torch.testing.assert_close(PER_SAMPLE["shift"](c * x), c * PER_SAMPLE["shift"](x))


@pytest.mark.parametrize("shape", SHAPES)
def test_length_after_norm(shape):
    d = math.prod(shape[1:])
    out = norms.ScaleNorm()(sample(shape)).flatten(1)
    torch.testing.assert_close(out.norm(dim=1), torch.full((5,), math.sqrt(d), dtype=torch.float64))
    out = norms.MeanVarNorm(6, affine=False, eps=1e-12)(sample(shape)).flatten(1)
    torch.testing.assert_close(out.norm(dim=1), torch.full((5,), math.sqrt(d), dtype=torch.float64))


@pytest.mark.parametrize("kind", norms.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_and_constant_samples_are_finite(kind, shape, value, dtype):
    x = torch.full(shape, value, dtype=dtype, requires_grad=True)
    norm = norms.norm_layer(kind, 6, spatial=len(shape) == 4).to(dtype)
    out = norm(x)
    gradients = torch.autograd.grad((out * sample(shape, dtype=dtype)).sum(), [x, *norm.parameters()])
    assert all(t.isfinite().all() for t in (out, *gradients))
    if value == 0:
        assert (out == 0).all()


@pytest.mark.parametrize("kind", ["layer", "feature", "shift", "group", "ln-g"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient(kind, shape):
    x = sample(shape).requires_grad_()
    assert torch.autograd.gradcheck(norms.norm_layer(kind, 6, spatial=x.dim() == 4).double(), (x,))


def test_channels_last_is_kept():
    x = sample((5, 6, 4, 3), dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    for kind in norms.KINDS:
        out = norms.norm_layer(kind, 6, spatial=True)(x)
        assert out.is_contiguous(memory_format=torch.channels_last), kind


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_torchs_without_the_counter(shape):
    spatial = len(shape) == 4
    ours, theirs = norms.BatchNorm(6, spatial).double(), (nn.BatchNorm2d if spatial else nn.BatchNorm1d)(6).double()
    assert sorted(ours.state_dict()) == ["bias", "running_mean", "running_var", "weight"]
    assert all(tensor.is_floating_point() for tensor in ours.state_dict().values())
    for seed in range(3):
        torch.testing.assert_close(ours(sample(shape, seed)), theirs(sample(shape, seed)))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(sample(shape)), theirs.eval()(sample(shape)))


def test_batch_norm_loads_a_plain_dict():
    source, target = norms.BatchNorm(6, True), nn.Sequential(norms.BatchNorm(6, True))
    source(sample((5, 6, 4, 3), dtype=torch.float32))
    target.load_state_dict({f"0.{name}": tensor for name, tensor in source.state_dict().items()})
    torch.testing.assert_close(target[0].running_mean, source.running_mean)
    assert target[0].num_batches_tracked is None


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("none", nn.Identity),
        ("batch", norms.BatchNorm),
        ("group", nn.GroupNorm),
        ("layer", norms.MeanVarNorm),
        ("feature", norms.ScaleNorm),
        ("shift", norms.MeanShift),
        ("ln-g", norms.GroupedLayerNorm),
    ],
)
def test_factory(kind, expected):
    norm = norms.norm_layer(kind, 6, spatial=True, groups=2)
    assert type(norm) is expected
    learnable = 12 if kind in ("batch", "group", "layer", "ln-g") else 0
    assert sum(p.numel() for p in norm.parameters()) == learnable
    assert not list(norms.norm_layer(kind, 6, spatial=True, affine=False).parameters())


def test_group_norm_sees_its_groups():
    x = sample((2, 6, 4, 3))
    out = norms.norm_layer("group", 6, spatial=True, affine=False, groups=2, eps=0.0)(x).reshape(2, 2, -1)
    torch.testing.assert_close(out.mean(2), torch.zeros(2, 2, dtype=x.dtype))
    torch.testing.assert_close(out.var(2, correction=0), torch.ones(2, 2, dtype=x.dtype))


# Scaled weight standardisation and adaptive gradient clipping


def rows_by_hand(weight, gamma):
    """The formula, one channel at a time: gamma (W - mu) / (sigma sqrt(N))."""
    rows = []
    for row in weight:
        mean = row.sum() / row.numel()
        variance = ((row - mean) ** 2).sum() / row.numel()
        rows.append(gamma * (row - mean) / (variance.sqrt() * math.sqrt(row.numel())))
    return torch.stack(rows)


WSCONVS = {"plain": {}, "gamma 1": {"gamma": 1.0}, "gain": {"gain": True}, "depthwise": {"groups": 6}}


def wsconv(dtype=torch.float64, **options):
    torch.manual_seed(0)
    conv = norms.ScaledWSConv2d(6, 12, 3, padding=1, **options).to(dtype)
    if conv.gain is not None:
        with torch.no_grad():
            conv.gain.copy_(torch.linspace(-1, 2, 12))
    return conv


@pytest.mark.parametrize("options", WSCONVS.values(), ids=WSCONVS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_the_effective_weight_have_mean_0_and_the_length_of_the_gain(options, dtype):
    conv = wsconv(dtype, **options)
    rows = conv.effective_weight().flatten(1)
    gain = conv.gamma * (torch.ones(12, dtype=dtype) if conv.gain is None else conv.gain)
    assert rows.mean(1).abs().max() < 1e-6
    assert (rows.norm(dim=1) - gain.abs()).abs().max() < 1e-6


@pytest.mark.parametrize("options", WSCONVS.values(), ids=WSCONVS)
def test_wsconv_and_its_gradient_are_those_of_the_formula(options):
    conv, x, seen = wsconv(**options), sample((2, 6, 5, 5)), sample((2, 12, 5, 5), 3)
    weight = rows_by_hand(conv.weight, conv.gamma)
    weight = weight if conv.gain is None else weight * conv.gain.reshape(-1, 1, 1, 1)
    expected = nn.functional.conv2d(x, weight, conv.bias, padding=1, groups=conv.groups)
    torch.testing.assert_close(conv(x), expected)
    learned = list(conv.parameters())
    for got, want in zip(
        torch.autograd.grad((conv(x) * seen).sum(), learned),
        torch.autograd.grad((expected * seen).sum(), learned),
        strict=True,
    ):
        assert (got - want).abs().max() < 1e-6


def test_wsconv_gradient_in_closed_form():
    """dL/dW_i = gamma / (sigma sqrt(N)) (I - 1 1'/N - u u') g_i, u = W_i's standardised row of length 1."""
    weight, g = sample((4, 3, 2, 2)).requires_grad_(), sample((4, 3, 2, 2), 1)
    (got,) = torch.autograd.grad((norms.standardise_rows(weight, 1.7) * g).sum(), weight)
    for row, grad, result in zip(weight.detach().flatten(1), g.flatten(1), got.flatten(1), strict=True):
        centred = row - row.mean()
        u = centred / centred.norm()
        torch.testing.assert_close(result, 1.7 / centred.norm() * (grad - grad.mean() - u * (u @ grad)))


def test_a_constant_row_gives_zeros_and_a_finite_gradient():
    weight = torch.full((2, 3, 3, 3), 0.7, requires_grad=True)
    out = norms.standardise_rows(weight, 1.7)
    (gradient,) = torch.autograd.grad(out.square().sum() + out.sum(), weight)
    assert out.abs().max() < 1e-4 and gradient.isfinite().all()


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_relu_gain_makes_the_variance_one(slope):
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2)
    density /= density.sum()
    out = norms.ScaledReLU(slope)(z)
    torch.testing.assert_close(out, norms.relu_gain(slope) * nn.functional.leaky_relu(z, slope))
    assert (density @ out**2 - (density @ out) ** 2).item() == pytest.approx(1, abs=1e-6)
    assert norms.relu_gain() == pytest.approx(math.sqrt(2) / math.sqrt(1 - 1 / math.pi), rel=1e-12)


def variances(conv, layers=20, channels=64):
    """Variance within a channel, mean over channels, before each of 20 ReLU layers on noise."""
    torch.manual_seed(0)
    h, found = torch.randn(16, channels, 12, 12), []
    with torch.no_grad():
        for _ in range(layers):
            h = conv(channels, channels, 3, padding=1, padding_mode="circular")(h)
            found.append(h.var((0, 2, 3)).mean().item())
            h = h.relu()
    return found


def test_signal_variance_is_preserved_through_20_layers():
    kept = variances(norms.ScaledWSConv2d)
    assert max(abs(v / kept[0] - 1) for v in kept) < 0.2
    assert kept[0] == pytest.approx(norms.relu_gain() ** 2, rel=0.05)  # the input has variance 1
    assert variances(nn.Conv2d)[-1] < 1e-6  # torch's own initialisation loses it
    assert variances(lambda *a, **k: norms.ScaledWSConv2d(*a, gamma=1.0, **k))[-1] < 1e-6


def test_wsconv_starts_from_the_weights_of_a_convolution():
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 12, 3, padding=1)
    torch.testing.assert_close(wsconv(torch.float32).state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_wsconv_refuses_a_gamma_that_is_none(gamma):
    with pytest.raises(ValueError, match="gamma must be a positive finite number"):
        norms.ScaledWSConv2d(3, 4, 3, gamma=gamma)


SIZES = [1, 4, 1, 1, 3]
UNITS = ((1, 1), (1, 4), (2, 1), (1, 3))


def clipped_by_hand(G, W, clipping, eps=1e-3):
    out = G.clone()
    for row, weights in zip(out, W, strict=True):
        start = 0
        for size in SIZES:
            unit = slice(start, start + size)
            allowed = max(weights[unit].norm().item(), eps) * clipping
            if row[unit].norm() > allowed:
                row[unit] *= allowed / row[unit].norm()
            start += size
    return out


@pytest.mark.parametrize("clipping", [0.01, 0.3, 1.0, 100.0])
def test_adaptive_clip_is_the_loop_over_units(clipping):
    G, W = sample((3, 10), 1), sample((3, 10), 2)
    W[0] = 0  # a unit of zeros may still move: eps
    G[1, 1:5] = 0
    got = norms.adaptive_clip(G, W, UNITS, clipping)
    torch.testing.assert_close(got, clipped_by_hand(G, W, clipping))
    ratio = norms.unit_norms(got, UNITS) / norms.unit_norms(W, UNITS).clamp(min=1e-3)
    assert ratio.max() <= clipping * (1 + 1e-12)
    torch.testing.assert_close(norms.adaptive_clip(got, W, UNITS, clipping), got)  # nothing is left to clip


def test_a_gradient_within_bounds_keeps_its_bits():
    G, W = 1e-3 * sample((3, 10), 1), sample((3, 10), 2)
    assert torch.equal(norms.adaptive_clip(G, W, UNITS, 1.0), G)


def test_refusals():
    with pytest.raises(ValueError, match="norm must be one of none, batch, .*got 'bacth'.*mean 'batch'"):
        norms.norm_layer("bacth", 6, spatial=True)
    with pytest.raises(ValueError, match="got None"):
        norms.norm_layer(None, 6, spatial=True)
    for kind, groups in itertools.product(("group", "ln-g"), (4, 0, 2.0, True)):
        with pytest.raises(ValueError, match=f"groups must divide.*features, 6: one of 1, 2, 3, 6; got {groups}"):
            norms.norm_layer(kind, 6, spatial=True, groups=groups)
    for kind in ("group", "ln-g"):
        with pytest.raises(ValueError, match="size must divide.*features, 6: .*got 4"):
            norms.norm_layer(kind, 6, spatial=True, size=4)
    with pytest.raises(ValueError, match=r"takes \(B, C, H, W\), got shape \(5, 6\)"):
        norms.norm_layer("batch", 6, spatial=True)(torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"takes \(B, C\), got shape"):
        norms.norm_layer("batch", 6, spatial=False)(torch.zeros(5, 6, 4, 3))


# LN-G


def grouped_by_hand(x, groups, eps=1e-5):
    """LN-G of vectors (..., d), an entry at a time."""
    out = torch.empty_like(x)
    for index in itertools.product(*map(range, x.shape[:-1])):
        for part in torch.arange(x.shape[-1]).chunk(groups):
            v = x[index][part]
            out[index][part] = (v - v.sum() / len(v)) / (((v - v.sum() / len(v)) ** 2).sum() / len(v) + eps).sqrt()
    return out


@pytest.mark.parametrize("shape", [(3, 12), (3, 5, 12), (3, 12, 2, 4)])
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_grouped_layer_norm_is_its_formula(shape, groups):
    x, norm = sample(shape), norms.GroupedLayerNorm(12, groups).double()
    with torch.no_grad():
        norm.weight.copy_(sample((12,), 1))
        norm.bias.copy_(sample((12,), 2))
    vectors = x.movedim(1, -1) if len(shape) == 4 else x
    expected = grouped_by_hand(vectors, groups) * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected.movedim(-1, 1) if len(shape) == 4 else expected)
    same = norms.GroupedLayerNorm(12, size=12 // groups).double()
    same.load_state_dict(norm.state_dict())
    assert torch.equal(same(x), norm(x))


def test_grouped_layer_norm_against_torchs_layers():
    """One group is LayerNorm; on vectors LN-G is GroupNorm; on images only the pooled variant is."""
    tokens, vectors, images = sample((3, 5, 12)), sample((3, 12)), sample((3, 12, 2, 4))
    torch.testing.assert_close(norms.GroupedLayerNorm(12, 1).double()(tokens), nn.LayerNorm(12).double()(tokens))
    theirs = nn.GroupNorm(3, 12).double()
    ours, pooled = norms.GroupedLayerNorm(12, 3).double(), norms.GroupedLayerNorm(12, 3, pool=True).double()
    torch.testing.assert_close(ours(vectors), theirs(vectors))
    torch.testing.assert_close(pooled(images), theirs(images))
    positions = images.permute(0, 2, 3, 1).reshape(-1, 12)
    torch.testing.assert_close(ours(images), theirs(positions).reshape(3, 2, 4, 12).permute(0, 3, 1, 2))
    assert (ours(images) - theirs(images)).abs().max() > 0.1
    moved = images.clone()
    moved[..., 0, 0] += sample((3, 12), 1)  # another input at one position
    changed = [(norm(moved) - norm(images)).abs().amax((0, 1)) > 1e-9 for norm in (ours, pooled)]
    assert changed[0].sum() == 1 and changed[0][0, 0] and changed[1].all()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 2, 4)])
def test_nan_stays_in_its_group_and_constants_give_zero(shape, pool):
    norm, x = norms.GroupedLayerNorm(12, 3, pool=pool).double(), sample(shape)
    x[0, 5] = math.nan  # second group of the first sample
    x[1, 8:] = 7.0  # third group of the second
    out = norm(x)
    spoilt = torch.zeros(2, 12, dtype=torch.bool)
    spoilt[0, 4:8] = True
    assert torch.equal(out.isnan().flatten(2).any(-1) if x.dim() == 4 else out.isnan(), spoilt)
    assert (out[1, 8:] == 0).all()


def test_grouped_layer_norm_stacks():
    members = [norms.GroupedLayerNorm(12, 3).double() for _ in range(3)]
    for seed, member in enumerate(members):
        nn.init.normal_(member.weight, generator=torch.Generator().manual_seed(seed))
    parameters, buffers = stack_module_state(members)
    x = torch.stack([sample((4, 12, 2, 2), seed) for seed in range(3)])
    stacked = torch.vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)))(parameters, buffers, x)
    torch.testing.assert_close(stacked, torch.stack([m(v) for m, v in zip(members, x, strict=True)]))


def test_group_sizes_that_make_no_sense():
    with pytest.raises(ValueError, match="6 groups for 6 features, and one feature minus its own mean is always 0"):
        norms.GroupedLayerNorm(6, 6)
    with pytest.warns(UserWarning, match="3 groups of two features: .*a sign; its slope is nearly 0 but for a spike"):
        signs = norms.GroupedLayerNorm(6, size=2, affine=False, eps=0.0)
    x = sample((4, 6)).requires_grad_()
    assert set(signs(x).detach().round(decimals=9).flatten().tolist()) == {-1.0, 1.0}
    (gradient,) = torch.autograd.grad((signs(x) * sample((4, 6), 1)).sum(), x)
    assert gradient.abs().max() < 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms.GroupedLayerNorm(6, size=3)
    for wrong in ({}, {"groups": 2, "size": 3}):
        with pytest.raises(ValueError, match="give either groups or size"):
            norms.GroupedLayerNorm(6, **wrong)
    for eps in (-1e-5, math.nan):
        with pytest.raises(ValueError, match="eps must be 0 or more"):
            norms.GroupedLayerNorm(6, 2, eps=eps)
    with pytest.raises(ValueError, match=r"GroupedLayerNorm\(6\) takes 6 features, got an input of shape \(4, 9\)"):
        norms.GroupedLayerNorm(6, 2)(torch.zeros(4, 9))


def test_groups_of_one_feature_are_refused_where_there_are_no_positions_to_pool():
    for options in ({"groups": 8}, {"size": 1}):
        with pytest.raises(
            ValueError, match="groups must leave two features at least to a group, got 8 for 8 features"
        ):
            norms.norm_layer("group", 8, spatial=False, **options)
    assert norms.norm_layer("group", 8, spatial=True, groups=8)(torch.randn(2, 8, 3, 3)).std() > 0.9  # instance norm

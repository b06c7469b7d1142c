"""The measures against numpy, numbers worked out by hand, and the bounds they are used for."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlib import measure, models, norms
from fedlib.algorithms import layerwise, phases, simclr


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.mlp((1, 4, 4), 5, hidden=(12, 8), bias=True)


@pytest.fixture
def x():
    return torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Copy(nn.Module):
    """Its features and logits are its input."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Identity()

    def forward(self, x):
        return self.head(self.body(x))


def test_per_class_accuracy_by_hand():
    x = torch.eye(4)[[0, 1, 1, 1, 2, 3]].reshape(6, 4, 1, 1)  # predicted: 0, 1, 1, 1, 2, 3
    y = torch.tensor([0, 1, 1, 0, 1, 3])
    accuracy = measure.per_class_accuracy(Copy(), x, y, 4)
    assert accuracy.dtype == torch.float64
    assert accuracy.tolist()[:2] == [1 / 2, 2 / 3] and accuracy[2].isnan() and accuracy[3] == 1


def test_per_class_accuracy_averages_to_accuracy(model, x):
    y = torch.arange(600) % 5
    accuracy = measure.per_class_accuracy(model, x, y, 5)
    assert accuracy.mean().item() == pytest.approx((model(x).argmax(1) == y).double().mean().item())


def test_batches_make_no_difference(model, x):
    assert len(x) > 2 * measure.BATCH
    torch.testing.assert_close(measure.features(model, x), model.body(x).detach())
    assert not measure.features(model, x).requires_grad
    np.testing.assert_allclose(measure.feature_norms(model, x), np.linalg.norm(model.body(x).detach(), axis=1), 1e-5)
    np.testing.assert_allclose(
        measure.class_weight_norms(model), np.linalg.norm(model.head.weight.detach(), axis=1), 1e-6
    )


def test_mode_and_statistics_are_left_alone(x):
    model = models.mlp((1, 4, 4), 5, hidden=(12, 8), norm="batch")
    model.train()
    model.body.norm1.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    one, both = measure.features(model, x[:1]), measure.features(model, x[:2])
    torch.testing.assert_close(one, both[:1])
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training and model.body.norm2.training and not model.body.norm1.training
    with pytest.raises(RuntimeError):
        measure.features(model, x[:, :, :2])
    assert model.training


@pytest.mark.parametrize("norm", ["feature", "layer"])
def test_normalised_features_have_length_sqrt_d(norm, x):
    torch.manual_seed(0)
    model = models.mlp((1, 4, 4), 5, hidden=(12, 8), norm=norm, eps=1e-12)
    lengths = measure.feature_norms(model, x)
    lengths = lengths[lengths > 0]  # a sample with no active unit stays zero
    assert len(lengths) > 500
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(8)))


def test_singular_values():
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(measure.singular_values(matrix, normalise=False), expected)
    np.testing.assert_allclose(measure.singular_values(matrix), expected / expected[0])
    assert measure.singular_values(torch.zeros(3, 2)).tolist() == [0, 0]


def test_effective_rank():
    assert measure.effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    assert measure.effective_rank(7 * torch.eye(4)) == pytest.approx(4)
    # sigma = 3, 1, 0: p = 3/4, 1/4
    by_hand = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert measure.effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(by_hand)
    assert measure.effective_rank(torch.zeros(3, 2)) == 0
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert measure.effective_rank(matrix) == pytest.approx(measure.effective_rank(100 * matrix.T))


def test_margins_by_hand():
    x = torch.tensor([[3.0, 1, 2], [3, 1, 2]]).reshape(2, 3, 1, 1)
    assert measure.margins(Copy(), x, torch.tensor([0, 1])).tolist() == [1, -2]


def test_margins_bound_the_loss_and_are_bounded_by_norms(x):
    torch.manual_seed(0)
    model, y = models.mlp((1, 4, 4), 5, hidden=(12, 8)).double(), torch.arange(600) % 5
    x = x.double()
    margin, loss = measure.margins(model, x, y), F.cross_entropy(model(x), y, reduction="none").detach()
    assert torch.equal(margin > 0, model(x).argmax(1) == y)
    assert (torch.log1p((-margin).exp()) <= loss + 1e-12).all()
    assert (loss <= torch.log1p(4 * (-margin).exp()) + 1e-12).all()
    apart = torch.cdist(model.head.weight, model.head.weight).detach()[y].amax(1)
    assert (margin <= measure.feature_norms(model, x) * apart + 1e-12).all()


def test_accuracy_by_hand():
    x = torch.eye(4).reshape(4, 4, 1, 1)
    assert measure.accuracy(Copy(), x, torch.tensor([0, 1, 2, 0])) == 3 / 4


# Separability


def blobs(m=60, d=4, classes=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(m) % classes
    centres, scale = torch.randn(classes, d, generator=g), 0.2 + 3 * torch.rand(d, generator=g)
    return (centres[y] + scale * torch.randn(m, d, generator=g)).double() + 5, y


def ssr_by_hand(x, y):
    x, y = x.numpy(), y.numpy()
    squares = [((x[y == c] - x[y == c].mean(0)) ** 2).sum() for c in np.unique(y)]
    return sum(squares) / ((x - x.mean(0)) ** 2).sum()


@pytest.mark.parametrize("classes, seed", [(2, 0), (2, 1), (3, 2), (5, 3)])
def test_lssr_is_the_minimum_over_linear_maps(classes, seed):
    """A numerical minimisation from several starts reaches the closed form, and no map gets below it."""
    x, y = blobs(classes=classes, seed=seed)
    closed = measure.lssr(x, y)
    maps = torch.randn(8, 4, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for start in maps:
        w = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def objective(w=w, optimiser=optimiser):
            optimiser.zero_grad()
            t = x @ w
            means = torch.stack([t[y == c].mean(0) for c in range(classes)])
            value = (t - means[y]).square().sum() / (t - t.mean(0)).square().sum()
            value.backward()
            return value

        optimiser.step(objective)
        reached = ssr_by_hand(x @ w.detach(), y)
        assert closed - 1e-12 <= reached
    assert reached == pytest.approx(closed, rel=1e-6)
    wide = torch.randn(2000, 4, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert min(ssr_by_hand(x @ a, y) for a in wide) >= closed


def test_lssr_is_the_generalised_eigenvalue_and_fishers():
    x, y = blobs()
    centred = x - x.mean(0)
    within = torch.cat([x[y == c] - x[y == c].mean(0) for c in (0, 1)])
    s_t, s_w = (centred.T @ centred).numpy(), (within.T @ within).numpy()
    assert measure.lssr(x, y) == pytest.approx(np.linalg.eigvals(np.linalg.solve(s_t, s_w)).real.min(), rel=1e-9)
    fisher = np.linalg.eigvals(np.linalg.solve(s_w, s_t - s_w)).real.max()
    assert measure.lssr(x, y) == pytest.approx(1 / (1 + fisher), rel=1e-9)


def test_lssr_does_not_change_under_linear_maps():
    x, y = blobs()
    a = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert measure.lssr(x @ a - 3, y) == pytest.approx(measure.lssr(x, y), rel=1e-9)  # seven features of rank four
    assert measure.lssr(x.float(), y) == pytest.approx(measure.lssr(x, y), rel=1e-4)
    assert measure.lssr(x @ a[:, :2], y) >= measure.lssr(x, y)


def test_xor():
    """No linear map separates XOR; one LN layer of width 3 with well-chosen weights does."""
    x, y = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    assert ssr_by_hand(x, y) == 1 and measure.lssr(x, y) == pytest.approx(1, abs=1e-12)
    line = (x[:, :1] + x[:, 1:]) * torch.tensor([1.0, -1, 0]) + torch.tensor([1.0, 1, -2])
    bent = norms.GroupedLayerNorm(3, 1, affine=False, eps=0.0)(line)  # -2, 2 at the ends, 0 twice: a fold
    assert measure.lssr(bent, y) < 1e-12
    x, y = blobs(classes=1)
    assert ssr_by_hand(x, y) == 1 and measure.lssr(x, y) == pytest.approx(1, abs=1e-12)


# Nonlinearity

EVERY_GROUP = [(d, g) for d in range(3, 33) for g in range(1, d) if d % g == 0]


@pytest.mark.parametrize("d, groups", EVERY_GROUP)
@pytest.mark.filterwarnings("ignore:.*groups of two")
def test_hessian_of_ln_g_is_the_closed_form(d, groups):
    x = 1 + 2 * torch.randn(d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    measured = measure.hessian_nonlinearity(norms.GroupedLayerNorm(d, groups, affine=False, eps=0.0), x)
    closed = measure.ln_nonlinearity(x, groups)
    scale = closed or sum(v.var(correction=0) ** -2 for v in x.chunk(groups)).item()  # groups of two: H = 0
    assert abs(measured - closed) <= 1e-6 * scale


def test_hessian_against_finite_differences():
    d, h = 6, 1e-3
    x, norm = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64), nn.LayerNorm(d, eps=0.0)
    eye, total = h * torch.eye(d, dtype=torch.float64), 0.0
    for i in range(d):
        for j in range(d):
            second = [norm.double()(x + a * eye[i] + b * eye[j]) * a * b for a in (1, -1) for b in (1, -1)]
            total += (sum(second) / (4 * h * h)).square().sum().item()
    assert measure.hessian_nonlinearity(norm, x) == pytest.approx(total, rel=1e-4)
    assert measure.ln_nonlinearity(x) == pytest.approx(total, rel=1e-4)


def test_affine_maps_have_no_nonlinearity():
    torch.manual_seed(0)
    model = models.ln_net((1, 2, 2), 3, "none", width=5, depth=3).double()
    x = torch.randn(4, dtype=torch.float64)
    assert measure.hessian_nonlinearity(lambda v: model(v.reshape(1, 1, 2, 2))[0], x) < 1e-20
    assert measure.hessian_nonlinearity(lambda v: v.square().sum()[None], x) == 4 * 4  # Hessian 2 I


@pytest.mark.parametrize("d", [12, 24, 32])
def test_ratio_is_a_lower_bound_reached_at_equal_groups(d):
    g = torch.Generator().manual_seed(d)
    for groups in (n for n in range(1, d) if d % n == 0 and d // n >= 2):
        bound = measure.nonlinearity_ratio(d, groups)
        assert bound == pytest.approx(groups * (d / groups - 2) / (d / groups) * d / (d - 2))
        for _ in range(20):
            x = torch.randn(d, generator=g, dtype=torch.float64)
            assert measure.ln_nonlinearity(x, groups) / measure.ln_nonlinearity(x) >= bound * (1 - 1e-9)
        equal = torch.randn(d // groups, generator=g, dtype=torch.float64).repeat(groups)
        assert measure.ln_nonlinearity(equal, groups) / measure.ln_nonlinearity(equal) == pytest.approx(bound)


def test_groups_of_four_bend_most():
    for d in (12, 24, 32, 256):
        fits = [g for g in range(1, d) if d % g == 0]
        assert max(fits, key=lambda g: measure.nonlinearity_ratio(d, g)) == d // 4
        assert measure.nonlinearity_ratio(d, d // 4) >= d / 8
        assert measure.nonlinearity_ratio(d, d // 2) == 0
        assert measure.nonlinearity_ratio(d, d // 3) >= 1 if d % 3 == 0 else True


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: measure.lssr(torch.zeros(4, 2), torch.zeros(4).long()), "two different points at least; got 4 equal"),
        (lambda: measure.lssr(torch.tensor([[1.0], [math.inf]]), torch.tensor([0, 1])), "1 entries not finite"),
        (lambda: measure.lssr(torch.ones(2, 1).int(), torch.tensor([0, 1])), "finite float matrix.*int32"),
        (lambda: measure.lssr(torch.rand(4, 2), torch.zeros(3).long()), r"y must be int64.*got \(3,\)"),
        (lambda: measure.ln_nonlinearity(torch.rand(6), 4), "groups must divide the entries"),
        (lambda: measure.ln_nonlinearity(torch.rand(6), 6), "two or more each; got 6"),
        (lambda: measure.ln_nonlinearity(torch.tensor([1.0, 1, 1, 2, 3, 4]), 2), "x must vary inside every group"),
        (lambda: measure.nonlinearity_ratio(12, 5), "groups must divide d.*groups=5, d=12"),
        (lambda: measure.nonlinearity_ratio(2, 1), "groups=1, d=2"),
    ],
)
def test_separability_and_nonlinearity_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What a step costs


def total(net, x, y, counts):
    return net(x).sum()


def chain(still=(), n=7, sizes=(5, 11, 3)):
    """Two linear layers without biases, those in `still` frozen; a batch of n."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)))
    for layer in still:
        net[layer].requires_grad_(False)
    return net, torch.randn(n, sizes[0])


@pytest.mark.parametrize("still", [(), (0,), (1,)])
def test_memory_of_two_linear_layers_by_hand(still):
    net, x = chain(still)
    first, second, hidden, out = 4 * 5 * 11, 4 * 11 * 3, 4 * 7 * 11, 4 * 7 * 3
    before = [p.clone() for p in net.parameters()]
    memory = measure.training_memory(net, total, x)
    assert memory.parameters == first + second
    assert memory.gradients == (0 not in still) * first + (1 not in still) * second
    assert memory.saved == (1 not in still) * hidden  # the second layer's weights need its input, its input its weights
    largest = {  # beside the parameters: what is alive when the last gradient that is not the first layer's is made
        (): hidden + second + hidden,  # its input, the gradient of its weights, that of its input
        (0,): hidden + max(second, out),
        (1,): hidden + first,
    }[still]  # the gradient of its input, then that of the first layer's weights
    assert 0 <= memory.peak - first - second - largest <= 16  # the loss, its gradient
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(net.parameters(), before, strict=True))
    assert [p.requires_grad for p in net.parameters()] == [0 not in still, 1 not in still]


def test_memory_of_what_is_absent_is_not_counted():
    net, x = chain()
    one = measure.training_memory(nn.Sequential(net[0]), total, x)
    net[1].requires_grad_(False)
    without = measure.training_memory(net, lambda net, x, y, c: net[0](x).sum(), x, absent={"1.weight"})
    assert without == one and one.parameters == one.gradients == 4 * 5 * 11


def test_memory_is_that_of_the_step_alone():
    """A second measurement says the same; what was alive before does not count; a doubled batch saves twice as much."""
    net, x = chain()
    one, again = (measure.training_memory(net, total, x) for _ in range(2))
    kept = [torch.zeros(10_000) for _ in range(5)]
    assert one == again == measure.training_memory(net, total, x) and len(kept) == 5
    assert measure.training_memory(net, total, x.repeat(2, 1)).saved == 2 * one.saved


def test_memory_of_layerwise_training():
    """Of the worst phase: at most a quarter of end to end, with depth dropout at half budget at most a fifth."""
    torch.manual_seed(0)
    net, x = models.vit_encoder((3, 32, 32), 32, patch=4, width=48, hidden=64), torch.rand(32, 3, 32, 32)

    def worst(method, rounds):
        found = []
        for t in rounds:
            absent = method.travels(net.train().requires_grad_(True), t).absent
            found.append(measure.training_memory(net, method.loss, x, absent))
        return max(m.peak for m in found), max(m.saved for m in found)

    whole, _ = worst(layerwise(simclr(), phases(12, active=12), 1), [0])
    layers, saved = worst(layerwise(simclr(), phases(12), 1), [0, 6, 11])
    dropped, saved_dropped = worst(layerwise(simclr(), phases(12), 1, budget=6), [0, 6, 11])
    assert layers <= whole / 4 and dropped <= whole / 5 and dropped < layers
    assert saved == saved_dropped  # one block's and the head's, whatever runs below


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("still, first, second", [((), 2, 3), ((0,), 1, 2), ((1,), 2, 2)])
def test_operations_of_two_linear_layers_by_hand(still, first, second, device):
    """A product forward, one for the gradient of the weights, one for that of the input: where they are needed."""
    net, x = chain(still)
    counted = measure.training_flops(net.to(device), total, x.to(device))
    assert counted == 2 * 7 * (first * 5 * 11 + second * 11 * 3)


def test_nothing_to_learn_is_refused():
    net, x = chain(still=(0, 1))
    for measured in (measure.training_memory, measure.training_flops):
        with pytest.raises(ValueError, match="net must have a parameter that learns .requires_grad., got none"):
            measured(net, total, x)
    with pytest.raises(ValueError, match="got none"):
        measure.training_memory(chain()[0], total, x, absent={"0.weight", "1.weight"})


def test_features_by_depth_end_with_the_features():
    torch.manual_seed(0)
    model, x = models.vit_encoder((1, 8, 8), 6, patch=4, width=8, depth=3, heads=2, hidden=8), torch.rand(300, 1, 8, 8)
    z = measure.features_by_depth(model.train(), x)
    assert z.shape == (300, 3, 8) and model.training and not z.requires_grad
    torch.testing.assert_close(z[:, -1], measure.features(model, x))
    model.body.run_only((1,), grown=2)
    torch.testing.assert_close(z[:, 1], measure.features(model, x))


def test_linear_probe():
    """Separable points are all told apart, at any scale; where labels are drawn by lot, one in four is right."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    centres = 10 * torch.randn(4, 6, generator=g)
    z = (centres[y] + torch.randn(400, 6, generator=g)) * torch.tensor([1, 1e-3, 1e3, 1, 1, 1]) + 50
    assert measure.linear_probe(z[:200], y[:200], z[200:], y[200:]) == 1.0
    lots = torch.randint(4, (400,), generator=g)
    assert abs(measure.linear_probe(z[:200], lots[:200], z[200:], lots[200:]) - 0.25) < 0.1
    half = torch.cat([y[200:300], (y[300:] + 1) % 4])
    assert measure.linear_probe(z[:200], y[:200], z[200:], half) == 0.5


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_probe_of_a_gpu_is_scikit_learns(classes):
    """On points that overlap, among them a constant feature and a class that only the test points have."""
    g = torch.Generator().manual_seed(classes)
    y = torch.arange(800) % classes
    z = torch.randn(classes, 6, generator=g)[y] + 1.5 * torch.randn(800, 6, generator=g)
    z[:, 5] = 3
    y[400] = classes
    theirs = measure.linear_probe(z[:400], y[:400], z[400:], y[400:])
    ours = measure._probe(z[:400].double(), y[:400], z[400:].double(), y[400:])
    assert 1 / classes < theirs < 0.99 and abs(ours - theirs) <= 1 / 400 + 1e-12


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x, y: measure.features(m, (255 * x).byte()), "x must hold one float image at least.*uint8"),
        (lambda m, x, y: measure.features(m, x[:0]), "x must hold one float image"),
        (lambda m, x, y: measure.per_class_accuracy(m, x, y[:3], 5), r"y must be int64.*got \(3,\)"),
        (lambda m, x, y: measure.per_class_accuracy(m, x, y.int(), 5), "y must be int64.*int32"),
        (lambda m, x, y: measure.per_class_accuracy(m, x, y, 4), r"y must lie in \[0, 4\); got labels from 0 to 4"),
        (lambda m, x, y: measure.accuracy(m, x, y + 1), r"y must lie in \[0, 5\); got labels from 1 to 5"),
        (lambda m, x, y: measure.margins(m, x, y + 1), r"y must lie in \[0, 5\); got labels from 1 to 5"),
        (lambda m, x, y: measure.singular_values(x), "features must be a finite"),
        (lambda m, x, y: measure.effective_rank(torch.full((2, 2), torch.nan)), "4 entries not finite"),
    ],
)
def test_refusals(model, x, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, x, torch.arange(600) % 5)


def test_a_network_in_double_precision_takes_images_as_they_come():
    """What a run with precision="float64" gives is measured as any other."""
    torch.manual_seed(0)
    net, x, y = models.mlp((1, 4, 4), 3, hidden=(8,)), torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    found = [measure.features(net, x), measure.accuracy(net, x, y), measure.margins(net, x, y)]
    net = net.double()
    assert measure.features(net, x).dtype == torch.float64
    torch.testing.assert_close(measure.features(net, x).float(), found[0])
    assert measure.accuracy(net, x, y) == found[1]
    torch.testing.assert_close(measure.margins(net, x, y).float(), found[2].float())

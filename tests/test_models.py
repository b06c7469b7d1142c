"""The models: what they compute, how many weights they have, the three propositions, and stacks of them."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from fedlib import models, norms

DIGIT = (1, 8, 8)
SMALL = {  # name -> (shape, options) that make each model tiny
    "mlp": (DIGIT, {"hidden": (12, 10, 8)}),
    "cnn": ((2, 16, 16), {"width": 6, "hidden": 12}),
    "slim_cnn": (DIGIT, {"width": 6, "hidden": 8}),
    "small_cnn": (DIGIT, {"width": 6, "hidden": 8}),
    "resnet18": ((2, 8, 8), {"width": 4}),
    "ln_net": (DIGIT, {"width": 6, "depth": 3}),
    # not 6: torch 2.14 writes past its memory in the weight gradient of a strided 1x1 convolution from 6 channels that
    # come last, on one thread
    "resnet20": ((2, 8, 8), {"width": 8, "blocks": 1}),
    "vit_tiny": (DIGIT, {"width": 8, "depth": 2, "heads": 2}),
    "digits_cnn": ((3, 8, 8), {"width": 4, "hidden": (8, 6)}),
    "slim_digits_cnn": ((3, 8, 8), {"width": 4, "hidden": (8,)}),
    "alexnet": ((3, 63, 63), {"width": 6, "hidden": 6}),
}
REFUSED = {
    "resnet18": {"shift", "ln-g"},
    "resnet20": {"shift", "feature", "wsconv"},
    "vit_tiny": {"shift", "feature", "group", "batch", "wsconv"},
}
KINDS = [(name, norm) for name in SMALL for norm in models.NORMS if norm not in REFUSED.get(name, ())]


def make(name, norm="none", seed=0, **options):
    shape, small = SMALL[name]
    torch.manual_seed(seed)
    return models.build(name, shape, 5, norm=norm, **small | options).double()


def images(name, batch=7, seed=1):
    shape = SMALL[name][0]
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# What they compute


def test_cnn_written_out():
    """Table 7's network with layer norm, in functions."""
    torch.manual_seed(0)
    model = models.cnn((3, 16, 16), 5, norm="layer", width=4, hidden=6, affine=False)
    p, x = dict(model.named_parameters()), torch.randn(7, 3, 16, 16)
    h = F.max_pool2d(F.group_norm(F.relu(F.conv2d(x, p["body.conv1.weight"])), 1), 2)
    h = F.max_pool2d(F.group_norm(F.relu(F.conv2d(h, p["body.conv2.weight"])), 1), 2)
    h = F.layer_norm(F.relu(h.flatten(1) @ p["body.fc1.weight"].T), (6,))
    torch.testing.assert_close(model.body(x), h)
    torch.testing.assert_close(model(x), h @ p["head.weight"].T)


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2)])
def test_max_pooling_is_torchs_in_any_layout_and_under_vmap(kernel, stride):
    pool, layouts = models.MaxPool2d(kernel, stride), (lambda x: x, lambda x: x.to(memory_format=torch.channels_last))
    values = torch.randint(0, 3, (5, 4, 6, 8, 8), generator=torch.Generator().manual_seed(0)).float()  # many ties
    for layout in layouts:
        x, y = layout(values[0]).requires_grad_(), values[0].clone().requires_grad_()
        mine, theirs = pool(x), F.max_pool2d(y, kernel, stride)
        weight = torch.randn(theirs.shape)
        assert torch.equal(mine, theirs)
        assert torch.equal(*(torch.autograd.grad((out * weight).sum(), of)[0] for out, of in ((mine, x), (theirs, y))))
    assert torch.equal(torch.vmap(pool)(values), torch.stack([F.max_pool2d(x, kernel, stride) for x in values]))


@pytest.mark.parametrize("where, slope", [("after", 0.0), ("after", 0.2), ("before", 0.0), ("before", 0.2)])
@pytest.mark.parametrize("norm", ["none", "layer", "feature", "batch"])
def test_pooling_before_the_activation_changes_nothing(where, slope, norm):
    model = make("slim_cnn", norm, where=where, slope=slope)
    x = images("slim_cnn")
    act = model.body.act1

    def block(x, i):
        kind = norm if norm != "feature" or i == 3 else "none"
        body = dict(model.body.named_children())
        layer = body[f"conv{i}"] if i < 3 else body["fc1"]
        norm_i = body[f"norm{i}"] if kind != "none" else nn.Identity()
        h = norm_i(act(layer(x))) if where == "after" else act(norm_i(layer(x)))
        return F.max_pool2d(h, 2) if i < 3 else h

    h = block(block(block(x, 1), 2).flatten(1), 3)
    ours, theirs = model.body(x), h
    torch.testing.assert_close(ours, theirs)
    weights = list(model.body.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), weights), torch.autograd.grad(theirs.square().sum(), weights)
    )


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer", "feature"])
def test_residual_block_written_out(norm):
    model = make("resnet18", norm)
    block, x = model.body.stage2[0], torch.randn(3, 4, 6, 6, dtype=torch.float64)
    a1, a2, short = block.conv1, block.conv2, block.shortcut
    if norm == "layer":
        n1, n2 = block.norm1, block.norm2
        expected = n2(F.relu(a2(n1(F.relu(a1(x)))) + short(x)))
    elif norm in ("batch", "group"):
        expected = F.relu(block.norm2(a2(F.relu(block.norm1(a1(x))))) + block.shortcut_norm(short(x)))
    else:
        expected = F.relu(a2(F.relu(a1(x))) + short(x))
    torch.testing.assert_close(block(x), expected)
    kinds = {type(m) for m in model.modules()} & {norms.BatchNorm, nn.GroupNorm, norms.MeanVarNorm, norms.ScaleNorm}
    assert (
        kinds
        == {
            "none": set(),
            "batch": {norms.BatchNorm},
            "group": {nn.GroupNorm},
            "layer": {norms.MeanVarNorm},
            "feature": {norms.ScaleNorm},
        }[norm]
    )


def test_digits_cnn_written_out():
    """FedBN's network: the norm before the ReLU, pooling after it, two pools for three convolutions."""
    model = make("digits_cnn", "batch")
    m, x = dict(model.body.named_children()), images("digits_cnn")
    h = x
    for i in (1, 2, 3):
        h = F.relu(m[f"norm{i}"](m[f"conv{i}"](h)))
        h = F.max_pool2d(h, 2) if i < 3 else h
    h = h.flatten(1)
    for i in (1, 2):
        h = F.relu(m[f"norm{3 + i}"](m[f"fc{i}"](h)))
    torch.testing.assert_close(model.body(x), h)


def test_digits_cnn_has_the_published_number_of_parameters():
    counts = {norm: models.parameters(models.digits_cnn((3, 28, 28), 10, norm)) for norm in ("batch", "none", "wsconv")}
    assert counts == {"batch": 14_219_210, "none": 14_213_578, "wsconv": 14_213_578}


def test_alexnet_without_norm_is_torchvisions():
    """torchvision's AlexNet in evaluation mode, where its dropout does nothing."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=5).eval()
    ours = models.alexnet((3, 96, 96), 5)
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_alexnet_norms_every_hidden_layer_before_the_activation():
    model = make("alexnet", "batch")
    kinds = [type(m).__name__ for m in model.body]
    where = [i for i, kind in enumerate(kinds) if kind == "BatchNorm"]
    assert len(where) == 7 and all(kinds[i - 1] in ("Conv2d", "Linear") for i in where)
    assert models.parameters(models.alexnet((3, 64, 64), 10, "batch")) == 57_063_498


@pytest.mark.parametrize("name", [name for name, norm in KINDS if norm == "wsconv" and name not in ("mlp", "ln_net")])
def test_wsconv_replaces_every_convolution_and_every_norm(name):
    kinds = [type(m) for m in make(name, "wsconv").modules()]
    assert norms.ScaledWSConv2d in kinds and nn.Conv2d not in kinds
    assert not {norms.BatchNorm, nn.GroupNorm, norms.MeanVarNorm, norms.ScaleNorm, norms.MeanShift} & set(kinds)


def test_the_relu_constant_does_the_same_in_the_weight_and_in_the_activation():
    """gamma rho(W x) = rho(gamma W x); without biases the two networks are one."""
    x, options = images("slim_digits_cnn"), {"bias": False, "hidden": ()}
    inside, outside, nowhere = (
        make("slim_digits_cnn", "wsconv", constant=c, **options) for c in ("weight", "activation", "nowhere")
    )
    torch.testing.assert_close(inside.body(x), outside.body(x))
    torch.testing.assert_close(inside.body(x), nowhere.body(x) * norms.relu_gain() ** 3)


def test_the_gain_is_one_parameter_a_channel():
    plain, gained = (make("slim_digits_cnn", "wsconv", gain=g) for g in (False, True))
    assert models.parameters(gained) - models.parameters(plain) == 4 + 4 + 8
    torch.testing.assert_close(plain(images("slim_digits_cnn")), gained(images("slim_digits_cnn")))


def test_resnet_without_norm_is_torchvisions():
    """The same network from torchvision's parts: its blocks with identities for norms, our stem and pooling."""
    resnet = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    theirs = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=5, norm_layer=lambda channels: nn.Identity())
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = models.resnet18((3, 8, 8), 5)
    by_name = dict(theirs.named_parameters())
    renamed = {
        name: name.replace("body.stem.conv", "conv1")
        .replace("body.stage", "layer")
        .replace("head", "fc")
        .replace("shortcut", "downsample.0")
        for name in ours.state_dict()
    }
    ours.load_state_dict({name: by_name[other] for name, other in renamed.items()})
    assert len(by_name) == len(renamed)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name, norm", KINDS)
def test_one_seed_gives_the_same_weights_and_names_for_every_norm(name, norm):
    plain, normed = dict(make(name).named_parameters()), dict(make(name, norm).named_parameters())
    assert plain.keys() <= normed.keys()
    assert all(torch.equal(weight, normed[key]) for key, weight in plain.items())


@pytest.mark.parametrize("name, norm", KINDS)
def test_features_and_memory_format(name, norm):
    model, x = make(name, norm).eval(), images(name)
    features = model.body(x)
    assert features.shape == (7, model.head.in_features)
    assert torch.equal(model(x), model.head(features)) and model(x).shape == (7, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), model(x))
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_places():
    def kinds(norm, places):
        model = make("slim_cnn", norm, places=places)
        found = {name: type(module).__name__ for name, module in model.body.named_children()}
        return [found.get(f"norm{i}", "-") for i in (1, 2, 3)]

    assert kinds("feature", None) == kinds("feature", "last") == ["-", "-", "ScaleNorm"]
    assert kinds("feature", "every") == ["ScaleNorm"] * 3
    assert kinds("layer", None) == kinds("layer", "every") == ["MeanVarNorm"] * 3
    assert kinds("layer", "last") == ["MeanShift", "MeanShift", "MeanVarNorm"]
    assert kinds("batch", "last") == ["-", "-", "BatchNorm"]
    assert kinds("none", "every") == ["-"] * 3


# How many weights


def test_parameter_counts():
    cifar = (3, 32, 32)
    count = models.parameters
    # conv 3*5*5*64, conv 64*5*5*64, dense 64*5*5*384, head 384*10
    assert count(models.cnn(cifar, 10)) == 4_800 + 102_400 + 614_400 + 3_840 == 725_440
    assert count(models.cnn(cifar, 10, norm="feature")) == 725_440
    assert count(models.cnn(cifar, 10, norm="layer")) == 725_440 + 2 * (64 + 64 + 384)
    assert count(models.cnn(cifar, 10, bias=True)) == 725_440 + 64 + 64 + 384 + 10
    assert count(models.slim_cnn(DIGIT, 10)) == 144 + 4_608 + 8_192 + 640 == 13_584
    assert count(models.small_cnn(cifar, 10)) == (432 + 16) + (4_608 + 32) + (32 * 64 * 64 + 64) + (640 + 10)
    assert count(models.mlp(DIGIT, 10)) == 64 * 64 + 64 * 64 + 64 * 32 + 32 * 10
    assert count(models.mlp(DIGIT, 10, hidden=(), bias=True)) == 650


def test_resnet18_parameter_counts():
    with torch.device("meta"):
        count = {
            norm: models.parameters(models.resnet18((3, 32, 32), 10, norm=norm))
            for norm in ("none", "batch", "group", "layer", "feature")
        }
    assert count["batch"] == count["group"] == 11_173_962  # the well-known 11.17 M
    assert count["none"] == count["feature"] == 11_164_362
    assert count["layer"] == 11_164_362 + 2 * (5 * 64 + 4 * (128 + 256 + 512))  # none on the three shortcuts


# The propositions


@pytest.mark.parametrize("name", ["mlp", "cnn", "slim_cnn"])
@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_proposition_1(name, where, slope):
    """n at every layer is n at the last one."""
    for seed in range(3):
        every = make(name, "feature", seed, places="every", where=where, slope=slope)
        last = make(name, "feature", seed, where=where, slope=slope)
        torch.testing.assert_close(every(images(name)), last(images(name)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "cnn", "slim_cnn"])
@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_proposition_2(name, where, slope):
    """n_MV at every layer is n_MV at the last one and mean shifts before."""
    for seed in range(3):
        every, last = (
            make(name, "layer", seed, places=places, where=where, slope=slope, affine=False, eps=1e-30)
            for places in ("every", "last")
        )
        torch.testing.assert_close(every(images(name)), last(images(name)), rtol=1e-10, atol=1e-10)
        shifts_only = make(name, "shift", seed, where=where, slope=slope)
        assert not torch.allclose(every(images(name)), shifts_only(images(name)))


@pytest.mark.parametrize("norm", ["feature", "layer"])
def test_propositions_1_and_2_hold_while_training(norm):
    """Equal networks with equal weights get equal gradients, so SGD keeps them equal."""
    options = {"affine": False, "eps": 1e-30}
    every, last = (make("mlp", norm, places=places, **options) for places in ("every", "last"))
    x, y = images("mlp", 30), torch.arange(30) % 5
    for _ in range(5):
        for model in (every, last):
            loss = F.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight -= 0.05 * gradient
    torch.testing.assert_close(list(every.parameters()), list(last.parameters()), rtol=1e-8, atol=1e-8)
    assert not torch.allclose(every.head.weight, make("mlp", norm, **options).head.weight)


def test_with_biases_propositions_1_and_2_fail():
    for norm in ("feature", "layer"):
        every, last = (make("mlp", norm, places=places, affine=False, bias=True) for places in ("every", "last"))
        assert not torch.allclose(every(images("mlp")), last(images("mlp")), rtol=1e-3)


@pytest.mark.parametrize(
    "norm, places",
    [("none", None), ("feature", "last"), ("feature", "every"), ("shift", None), ("layer", "every"), ("layer", "last")],
)
@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_proposition_3(norm, places, where, slope):
    """The plain twin decides 3,000 inputs alike; its logits are the model's, each sample's times a positive number."""
    for seed in range(3):
        model = make("mlp", norm, seed, places=places, where=where, slope=slope, affine=False)
        if seed == 2:  # the first layer may have a bias
            model.body.fc1.bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
        before = copy.deepcopy(model.state_dict())
        twin, x = models.plain_twin(model), images("mlp", 3_000, seed)
        ours, theirs = model(x), twin(x)
        assert torch.equal(ours.argmax(1), theirs.argmax(1))
        assert len(ours.argmax(1).unique()) > 1
        alive = (ours != 0).any(1)  # a sample may leave no unit of a small layer active: its logits are 0
        assert alive.double().mean() > 0.9 and (theirs[~alive] == 0).all()
        ours, theirs = ours[alive], theirs[alive]
        ratio = (ours * theirs).sum(1, keepdim=True) / ours.square().sum(1, keepdim=True)
        assert (ratio > 0).all()
        torch.testing.assert_close(theirs, ratio * ours, rtol=1e-9, atol=1e-12)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert twin.state_dict().keys() == before.keys()
        assert not any(isinstance(m, (norms.MeanVarNorm, norms.MeanShift, norms.ScaleNorm)) for m in twin.modules())


def test_twin_of_a_plain_net_is_itself():
    model = make("mlp")
    assert torch.equal(models.plain_twin(model)(images("mlp")), model(images("mlp")))


@pytest.mark.parametrize(
    "name, norm, options, message",
    [
        ("mlp", "batch", {}, "is a BatchNorm"),
        ("mlp", "group", {}, "is a GroupNorm"),
        ("mlp", "layer", {}, "affine=False; 'norm1'"),
        ("mlp", "none", {"bias": True}, "first layer only; 'fc2'"),
        ("slim_cnn", "layer", {"affine": False}, "'conv1' is a Conv2d"),
        ("resnet18", "none", {}, "'stem'"),
    ],
)
def test_twin_refuses(name, norm, options, message):
    with pytest.raises(ValueError, match=message):
        models.plain_twin(make(name, norm, **options))


# Networks without activations


def is_affine(f, shape):
    """Whether f(a x + (1 - a) y) = a f(x) + (1 - a) f(y) on random images."""
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, 6, *shape, generator=g, dtype=torch.float64)
    return torch.allclose(f(0.3 * x + 0.7 * y), 0.3 * f(x) + 0.7 * f(y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name, without, relu",
    [("ln_net", {}, {"slope": 0.0}), ("mlp", {"slope": 1.0}, {}), ("resnet20", {"activation": False}, {})],
)
@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer", "ln-g"])
def test_without_activations_only_norms_of_one_sample_bend(name, without, relu, norm):
    """With batch norm the network is affine in evaluation mode, so that is what its test accuracy comes from."""
    model = make(name, norm, **without)
    model(images(name))  # batch norm now has statistics
    assert is_affine(model.eval(), SMALL[name][0]) == (norm in ("none", "batch"))
    assert not any(isinstance(m, (nn.ReLU, nn.LeakyReLU)) for m in model.modules())
    assert not is_affine(make(name, "none", **relu).eval(), SMALL[name][0])


def test_groups_of_two_are_locally_constant():
    """An LN-Net with groups of two: its logits jump, but between the jumps they do not move."""
    with pytest.warns(UserWarning, match="groups of two"):
        model = models.ln_net(DIGIT, 5, "ln-g", size=2, width=8, depth=2, eps=0.0).double()
    x = images("mlp").requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    assert gradient.abs().max() < 1e-9
    assert len(model(x).unique(dim=0)) > 1


def test_resnet20_is_hes():
    """19 convolutions of He et al., and 1x1 shortcuts; 0.27 million weights; stages of 16, 32, 64 channels."""
    model = models.resnet20((3, 32, 32), 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 19
    pairs = [(3, 16)] + [(16, 16)] * 6 + [(16, 32)] + [(32, 32)] * 5 + [(32, 64)] + [(64, 64)] * 5
    weights = sum(9 * a * b + 2 * b for a, b in pairs) + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64 + 650
    assert models.parameters(model) == weights == 272474
    assert [model.body[: i + 1](torch.zeros(1, 3, 32, 32)).shape[1:] for i in range(4)] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]


def test_pre_norm_block_written_out():
    torch.manual_seed(0)
    block = models.PreNormBlock(8, 2, lambda: norms.GroupedLayerNorm(8, 2)).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    normed = block.norm1(x)
    h = x + theirs(normed, normed, normed)[0]
    torch.testing.assert_close(block(x), h + block.narrow(F.gelu(block.wide(block.norm2(h)))))


def test_vit_with_one_group_is_a_vit_with_layer_norm():
    one, ln = (make("vit_tiny", norm, groups=1) for norm in ("ln-g", "layer"))
    torch.testing.assert_close(one(images("vit_tiny")), ln(images("vit_tiny")))
    assert not torch.allclose(make("vit_tiny", "ln-g", groups=2)(images("vit_tiny")), ln(images("vit_tiny")))


def test_vit_sees_places_and_patches():
    """Without what is learned for their places, the order of the patches does not matter."""
    model, x = make("vit_tiny"), images("vit_tiny")
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=-1)  # the two columns of 4x4 patches
    assert not torch.allclose(model(x), model(swapped))
    nn.init.zeros_(model.body.patches.place)
    torch.testing.assert_close(model(x), model(swapped))


def test_vit_written_out():
    """Patches, blocks, the last norm, the mean of the tokens, the head."""
    model, x = make("vit_tiny", "layer", depth=3), images("vit_tiny")
    p, body = dict(model.named_parameters()), model.body
    h = F.conv2d(x, p["body.patches.embed.weight"], p["body.patches.embed.bias"], stride=4)
    h = h.flatten(2).transpose(1, 2) + p["body.patches.place"]
    for block in body.blocks:
        h = block(h)
    features = F.layer_norm(h, (8,), p["body.norm.weight"], p["body.norm.bias"]).mean(1)
    torch.testing.assert_close(body(x), features)
    torch.testing.assert_close(model(x), features @ p["head.weight"].T + p["head.bias"])


def vit_encoder(**options):
    torch.manual_seed(0)
    return models.vit_encoder(DIGIT, 6, **{"patch": 4, "width": 8, "depth": 4, "heads": 2, "hidden": 10} | options)


def test_vit_encoder_written_out():
    model, x = vit_encoder(depth=2), images("vit_tiny").float()
    norm, wide, _, out = model.head
    h = model.body.blocks[1](model.body.blocks[0](model.body.patches(x))).mean(1)
    torch.testing.assert_close(model.body(x), h)
    torch.testing.assert_close(model(x), out(F.gelu(wide(norm(h)))))
    assert (wide.out_features, out.out_features) == (10, 6)


def test_vit_encoder_is_vit_ti_16():
    """Of torchvision's ViT at these sizes, but for the class token, its place and the last norm."""
    model = models.vit_encoder((3, 224, 224))
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)
    block = models.parameters(theirs.encoder.layers[0])
    assert [models.parameters(b) for b in model.body.blocks] == [block] * 12 and block == 444_864
    patches = models.parameters(theirs.conv_proj) + theirs.encoder.pos_embedding.numel() - 192
    assert models.parameters(model.body.patches) == patches
    assert model.body.blocks[0].heads == theirs.encoder.layers[0].num_heads == 3


@pytest.mark.parametrize("grown, running", [(4, (1, 2, 3, 4)), (4, (1, 3)), (3, (1, 3)), (2, (1, 2)), (1, (1,))])
def test_blocks_that_run_in_training_and_in_evaluation(grown, running):
    """Training: those in `running`. Evaluation: all up to `grown`. depths(): all there are."""
    body, x = vit_encoder().body.double(), images("vit_tiny")
    body.run_only(running)
    assert (body.grown, body.stage()) == (max(running), running)
    body.run_only(running, grown)
    assert (body.grown, body.stage()) == (grown, running)

    def through(numbers):
        h = body.patches(x)
        for number in numbers:
            h = body.blocks[number - 1](h)
        return h.mean(1)

    calls = []
    for number, block in enumerate(body.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    torch.testing.assert_close(body.train()(x), through(running), rtol=0, atol=0)
    assert tuple(calls[: len(running)]) == running and len(calls) == 2 * len(running)
    torch.testing.assert_close(body.eval()(x), through(range(1, grown + 1)), rtol=0, atol=0)
    truncated = torch.stack([through(range(1, depth + 1)) for depth in range(1, 5)], dim=1)
    torch.testing.assert_close(body.depths(x), truncated, rtol=0, atol=0)
    assert copy.deepcopy(body).stage() == running


@pytest.mark.parametrize(
    "running, learning, learns, left_out",
    [
        ((1, 2, 3, 4), {4}, {4}, set()),
        ((3, 1), {3}, {3}, {2, 4}),
        ((1, 2), {1, 2, 3}, {1, 2}, {3, 4}),
        ((2, 3), (), set(), {1, 4}),
    ],
)
def test_blocks_that_learn_and_blocks_that_are_left_out(running, learning, learns, left_out):
    body = vit_encoder().body
    body.run_only(running, learning=learning)
    assert body.depth == 4 and body.stage() == tuple(sorted(running))
    assert all(p.requires_grad == (1 in learning) for p in body.patches.parameters())
    for number, block in enumerate(body.blocks, start=1):
        assert all(p.requires_grad == (number in learns) for p in block.parameters())
    missing = {
        n for n, p in body.named_parameters() for b in left_out if any(p is q for q in body.blocks[b - 1].parameters())
    }
    assert body.left_out() == missing
    frozen = [p.requires_grad for p in body.parameters()]
    body.run_only((1, 2, 3, 4))
    assert not body.left_out() and [p.requires_grad for p in body.parameters()] == frozen


@pytest.mark.parametrize(
    "running, grown", [((), None), ((), 2), ((0, 1), None), ((1, 5), None), ((1,), 5), ((1, 3), 2)]
)
def test_blocks_that_are_not_there_cannot_run(running, grown):
    body = vit_encoder().body
    with pytest.raises(ValueError, match=f"from 1 to grown, which is 4 at most; got .* and grown={grown}"):
        body.run_only(running, grown)
    assert (body.stage(), body.grown) == ((1, 2, 3, 4), 4)


def test_depths_end_with_the_last_norm():
    body, x = make("vit_tiny", "layer", depth=3).body, images("vit_tiny")
    torch.testing.assert_close(body.depths(x)[:, -1], body(x))
    body.run_only((1, 2))
    torch.testing.assert_close(body.depths(x)[:, 1], body(x))
    torch.testing.assert_close(body.depths(x)[:, 1], body.eval()(x))


# Stacks of models


def stacked(members):
    parameters, buffers = stack_module_state(members)
    parameters = {key: tensor.detach().requires_grad_() for key, tensor in parameters.items()}
    return parameters, {key: tensor.clone() for key, tensor in buffers.items()}


@pytest.mark.parametrize("name, norm", KINDS)
def test_vmap_equals_a_loop(name, norm):
    """Losses, gradients and batch-norm statistics of three stacked models are those of each alone."""
    members = [make(name, norm, seed) for seed in range(3)]
    x, y = torch.stack([images(name, 4, seed) for seed in range(3)]), torch.arange(12).reshape(3, 4) % 5
    skeleton = copy.deepcopy(members[0]).to("meta")
    parameters, buffers = stacked(members)

    def loss(parameters, buffers, x, y):
        return F.cross_entropy(functional_call(skeleton, (parameters, buffers), (x,)), y)

    losses = torch.vmap(loss)(parameters, buffers, x, y)
    gradients = dict(zip(parameters, torch.autograd.grad(losses.sum(), list(parameters.values())), strict=True))
    for k, member in enumerate(members):
        alone = F.cross_entropy(member(x[k]), y[k])
        torch.testing.assert_close(losses[k], alone)
        alone.backward()
        for key, parameter in member.named_parameters():
            torch.testing.assert_close(gradients[key][k], parameter.grad, rtol=1e-8, atol=1e-11)
        for key, buffer in member.named_buffers():
            torch.testing.assert_close(buffers[key][k], buffer)
    assert bool(buffers) == (norm == "batch")


@pytest.mark.parametrize("name", ["mlp", "slim_cnn", "resnet18"])
def test_running_statistics_under_functional_call(name):
    """The buffers that are passed in are updated in place, those of the module are not."""
    model = make(name, "batch")
    given = {key: tensor.clone() for key, tensor in model.named_buffers()}
    functional_call(model, (dict(model.named_parameters()), given), (images(name),))
    first = next(iter(given))
    assert not torch.equal(given[first], dict(model.named_buffers())[first])
    model(images(name))
    torch.testing.assert_close(given, dict(model.named_buffers()))
    frozen = {key: tensor.clone() for key, tensor in given.items()}
    functional_call(model.eval(), (dict(model.named_parameters()), given), (images(name),))
    torch.testing.assert_close(given, frozen, rtol=0, atol=0)


# Robustness


@pytest.mark.parametrize("name, norm", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_on_flat_images(name, norm, value):
    model = make(name, norm).float()
    loss = F.cross_entropy(model(torch.full((4, *SMALL[name][0]), value)), torch.arange(4))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_every_model_is_tested():
    assert set(models.MODELS) == {*SMALL, "char_transformer", "small_char_transformer"}


# FedNAR's networks (arXiv 2310.03163)


def test_resnet18_of_fednar():
    """The parameters, channels and initial norm of its code; only the first 3x3 of the last 4x4 positions count."""
    torch.manual_seed(0)
    model = models.resnet18((3, 32, 32), 10, norm="group", corner=3)
    norm_layers = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert models.parameters(model) == 11_173_962 and sum(m.num_channels for m in norm_layers) == 4_800
    assert {m.num_groups for m in norm_layers} == {2}
    assert nn.utils.parameters_to_vector(model.parameters()).norm().item() == pytest.approx(80.0, abs=0.1)
    last = torch.rand(2, 6, 4, 4)
    torch.testing.assert_close(model.body.pool(last), F.avg_pool2d(last, 3).flatten(1))
    torch.testing.assert_close(models.GlobalAveragePool()(last), F.avg_pool2d(last, 4).flatten(1))


def test_char_transformer_is_torchs_encoder():
    torch.manual_seed(0)
    model = models.char_transformer((9,), 7, width=8, layers=2, heads=2, feedforward=20, dropout=0.0).double()
    x = torch.randint(0, 7, (5, 9))
    h = model.body.characters(x) + model.body.positions.weight
    for block in model.body.blocks:
        layer = nn.TransformerEncoderLayer(8, 2, 20, dropout=0.0, batch_first=True, dtype=torch.float64)
        pairs = {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.wide.weight,
            "linear1.bias": block.wide.bias,
            "linear2.weight": block.narrow.weight,
            "linear2.bias": block.narrow.bias,
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
        }
        layer.load_state_dict({name: tensor.detach() for name, tensor in pairs.items()})
        h = layer(h)
    torch.testing.assert_close(model(x), model.head(h[:, -1]))


def test_char_transformer_of_fednar():
    d, ff, layer = 128, 512, 4 * 128 * 128 + 4 * 128 + 2 * 128 * 512 + 512 + 128 + 4 * 128
    model = models.build("char_transformer", (80,), 80)
    assert models.parameters(model) == 2 * 80 * d + 6 * layer + 80 * d + 80 == 1_220_432
    block = model.body.blocks[0]
    assert (len(model.body.blocks), block.heads, block.wide.out_features, block.dropout.p) == (6, 4, ff, 0.1)
    last = torch.randint(0, 80, (1, 80)).repeat(2, 1)
    last[1, 0] += 1 - 2 * (last[1, 0] == 79)  # no mask: the first character is seen, too
    with torch.no_grad():
        assert (model.eval()(last)[0] - model(last)[1]).abs().max() > 1e-6


def test_char_transformer_refuses():
    for options, message in [
        ({"heads": 3}, "heads must divide width: got heads=3 for width=128"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"layers": 0}, "layers must be a whole number of at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            models.char_transformer((80,), 65, **options)
    with pytest.raises(ValueError, match="shape must be .length of a window"):
        models.char_transformer((1, 8, 8), 10)
    with pytest.raises(ValueError, match="classes must be 2 or more"):
        models.small_char_transformer((8,), 1)
    with pytest.raises(ValueError, match="corner must be 1 or more"):
        models.resnet18((3, 8, 8), 10, corner=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.build("resnet", DIGIT, 10), "name must be one of mlp, cnn.*Did you mean 'resnet(18|20)'"),
        (lambda: models.build("cnn", (3, 32, 32), 10, norm="layers"), "norm must be one of.*Did you mean 'layer'"),
        (
            lambda: models.resnet18(DIGIT, 10, norm="shift"),
            "norm must be one of none, batch, group, layer, feature, ws",
        ),
        (lambda: models.mlp(DIGIT, 10, hiden=(3,)), "option must be one of hidden, norm.*Did you mean 'hidden'"),
        (lambda: models.cnn((1, 15, 28), 10), "at least 16x16"),
        (lambda: models.slim_cnn((1, 3, 8), 10), "at least 4x4"),
        (lambda: models.mlp((8, 8), 10), r"shape must be \(channels, height, width\)"),
        (lambda: models.resnet18((0, 8, 8), 10), "each 1 or more"),
        (lambda: models.mlp(DIGIT, 1), "classes must be 2 or more; got 1"),
        (lambda: models.mlp(DIGIT, 10, norm="layer", hidden=()), "hidden must name at least one layer"),
        (lambda: models.mlp(DIGIT, 10, norm="group", groups=3), "groups must divide.*features, 64: .*got 3"),
        (lambda: models.mlp(DIGIT, 10, where="middle"), "where must be one of after, before"),
        (lambda: models.mlp(DIGIT, 10, places="first"), "places must be one of every, last"),
        (lambda: models.mlp(DIGIT, 10, slope=-0.1), "slope must be 0 or more"),
        (lambda: models.ln_net(DIGIT, 10, depth=0), "depth must be a whole number of at least 1, got 0"),
        (lambda: models.ln_net(DIGIT, 10, "ln-g", size=5), "size must divide the number of features, 64.*got 5"),
        (lambda: models.resnet20(DIGIT, 10, "feature"), "norm must be one of none, batch, group, layer, ln-g;"),
        (lambda: models.resnet20(DIGIT, 10, blocks=True), "blocks must be a whole number of at least 1, got True"),
        (lambda: models.vit_tiny(DIGIT, 10, "batch"), "norm must be one of none, layer, ln-g;"),
        (lambda: models.vit_tiny(DIGIT, 10, patch=3), "patch must divide both sides of the image, 8 and 8; got 3"),
        (lambda: models.vit_tiny(DIGIT, 10, heads=5), "heads must divide width=64; got 5"),
        (lambda: models.vit_encoder((3, 32, 40)), "patch must divide both sides of the image, 32 and 40; got 16"),
        (lambda: models.vit_encoder((3, 32, 32), width=100), "heads must divide width=100; got 3"),
        (lambda: models.vit_encoder((3, 32, 32), depth=0), "depth must be a whole number of at least 1, got 0"),
        (lambda: models.vit_encoder((3, 32, 32), hidden=0), "hidden must be a whole number of at least 1, got 0"),
        (lambda: models.cnn((3, 32, 32), 10, norm="wsconv", constant="everywhere"), "constant must be one of weight"),
        (lambda: models.alexnet((3, 62, 64), 10), "at least 63x63"),
        (lambda: models.digits_cnn((3, 3, 8), 10), "at least 4x4"),
        (
            lambda: models.digits_cnn((3, 28, 28), 10, norm="group", groups=3),
            "groups must divide.*features, 64: .*got 3",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_smallest_images():
    assert models.cnn((1, 16, 16), 3, width=2, hidden=2)(torch.zeros(1, 1, 16, 16)).shape == (1, 3)
    assert models.slim_cnn((1, 4, 4), 3)(torch.zeros(1, 1, 4, 4)).shape == (1, 3)
    assert models.resnet18((1, 1, 1), 3, width=2)(torch.zeros(1, 1, 1, 1)).shape == (1, 3)

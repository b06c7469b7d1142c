"""What is trained: small networks, each a body that makes features and a head that makes logits.

A network whose blocks do not all run in every round, such as one of a `BlockBody`, is asked and told by methods, so
that nobody has to know its class:

    stage()      any of its modules may have it: what of it runs in training, hashable. The engine plans a round by it.
    depth, run_only(running, grown, learning), left_out()      its body has them, for `algorithms.layerwise`

Every function here returns a `Classifier`. Its weights are drawn from torch's global generator by torch's own
initialisation, which is also what the code of arXiv 2308.09565 uses: call `torch.manual_seed` first. No norm draws
a random number and none changes the name of a weight, so one seed gives the same weights whatever the norm.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from fedlib import checks
from fedlib.norms import (
    KINDS,
    GroupedLayerNorm,
    MeanShift,
    MeanVarNorm,
    ScaledReLU,
    ScaledWSConv2d,
    ScaleNorm,
    norm_layer,
    relu_gain,
)

__all__ = [
    "MODELS",
    "NORMS",
    "AttentionBlock",
    "BlockBody",
    "CharacterBody",
    "Classifier",
    "PreNormBlock",
    "ResidualBlock",
    "Style",
    "alexnet",
    "build",
    "char_transformer",
    "cnn",
    "digits_cnn",
    "ln_net",
    "mlp",
    "parameters",
    "plain_twin",
    "resnet18",
    "resnet20",
    "slim_cnn",
    "slim_digits_cnn",
    "small_char_transformer",
    "small_cnn",
    "vit_encoder",
    "vit_tiny",
]

Shape = tuple[int, int, int]
Layers = list[tuple[str, nn.Module]]  # names and modules, in the order of the signal
NORMS = (*KINDS, "wsconv")  # wsconv: no norm, and every convolution a ScaledWSConv2d


class Classifier(nn.Module):
    """logits = head(body(x)).

    body  x (B, C, H, W), float, any memory format (or (B, L), character numbers) -> features (B, d)
    head  features -> logits (B, classes), a linear layer: row c of head.weight is the classifier w_c of class c
    """

    def __init__(self, body: nn.Module, head: nn.Module):
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class MaxPool2d(nn.MaxPool2d):
    """torch's max-pooling, which on a CPU is 3 to 14 times as fast when the channels of a pixel lie together.

    Under vmap they do not, because there the channels of all rows go into one convolution.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) in any memory format -> (..., C, H', W'), channels-last."""
        return cast(torch.Tensor, super().forward(input.movedim(-3, -1).contiguous().movedim(-1, -3)))


@dataclass(frozen=True)
class Style:
    """How the layers of an MLP or a CNN are put together; the keyword options of `mlp`, `ln_net` and the CNNs.

    Attributes:
        norm: none, feature, layer, group, batch, shift or ln-g (see `norms.norm_layer`), or wsconv: no norm, and every
            convolution standardises its weights (`norms.ScaledWSConv2d`); dense layers stay plain.
        where: the norm stands "after" the activation, as in arXiv 2308.09565, or "before" it.
        places: "every" layer has the norm, or the "last" hidden layer only. With "layer", "last" leaves mean shifts in
            the earlier layers: the reduced network of proposition 2. Default: "last" for feature, which by
            proposition 1 is the same network as "every"; "every" for the others.
        affine: learnable scale and shift in layer, group, batch and LN-G norms.
        groups: of the group norm and of LN-G.
        size: features (channels) in a group, in place of `groups`.
        bias: biases in all convolutions and dense layers, the head included.
        slope: of the activation for negative inputs, >= 0: 0 is ReLU, more is LeakyReLU, 1 is no activation at all.
        eps: of the norms. Proposition 2 is exact for eps -> 0: a mean-variance norm's eps does not scale with its
            input.
        constant: of wsconv, where the constant `norms.relu_gain` stands: in the "weight", in the "activation" of every
            layer (`norms.ScaledReLU`), or "nowhere".
        gain: of wsconv, a learnable factor for each output channel.
    """

    norm: str = "none"
    where: str = "after"
    places: str | None = None
    affine: bool = True
    groups: int = 2
    size: int | None = None
    bias: bool = False
    slope: float = 0.0
    eps: float = 1e-5
    constant: str = "weight"
    gain: bool = False

    def __post_init__(self):
        checks.choice("norm", self.norm, NORMS)
        checks.choice("constant", self.constant, ("weight", "activation", "nowhere"))
        checks.choice("where", self.where, ("after", "before"))
        if self.places is not None:
            checks.choice("places", self.places, ("every", "last"))
        if self.slope < 0:
            raise ValueError(f"slope must be 0 or more, so that the activation never decreases; got {self.slope}.")

    def activation(self) -> nn.Module:
        if self.norm == "wsconv" and self.constant == "activation":
            return ScaledReLU(self.slope)
        return nn.LeakyReLU(self.slope) if self.slope else nn.ReLU()

    def conv(self, channels_in: int, channels: int, kernel: int, **options) -> nn.Conv2d:
        """A convolution, of the kind that the norm asks for."""
        if self.norm != "wsconv":
            return nn.Conv2d(channels_in, channels, kernel, bias=self.bias, **options)
        gamma = relu_gain(self.slope) if self.constant == "weight" else 1.0
        return ScaledWSConv2d(channels_in, channels, kernel, gamma=gamma, gain=self.gain, bias=self.bias, **options)

    def kind(self, last: bool) -> str:
        """The norm of a hidden layer, `last` or earlier."""
        if self.norm == "wsconv":
            return "none"
        places = self.places or ("last" if self.norm == "feature" else "every")
        if last or places == "every":
            return self.norm
        return "shift" if self.norm == "layer" else "none"

    def layer(
        self, name: str, index: int, linear: nn.Conv2d | nn.Linear, last: bool, pool: nn.Module | None = None
    ) -> Layers:
        """(name, module) pairs of one hidden layer: `linear`, its norm, the activation, and max-pooling.

        Pooling comes last in the papers. It goes before the activation here wherever no norm stands between the
        two: the maximum passes through a function that never decreases, so the network is the same, and the
        activation has a quarter of the entries to work on.
        """
        spatial, kind = isinstance(linear, nn.Conv2d), self.kind(last)
        channels = linear.out_channels if isinstance(linear, nn.Conv2d) else linear.out_features
        options = {"affine": self.affine, "groups": self.groups, "size": self.size, "eps": self.eps}
        normed: Layers = []
        if kind != "none":
            normed = [(f"norm{index}", norm_layer(kind, channels, spatial=spatial, **options))]
        act: Layers = [] if self.slope == 1 else [(f"act{index}", self.activation())]
        pooled: Layers = [(f"pool{index}", pool)] if pool else []
        if self.where == "before":
            return [(name, linear), *normed, *pooled, *act]
        return [(name, linear), *(act + normed + pooled if normed else pooled + act)]


def mlp(shape: Shape, classes: int, norm: str = "none", hidden: Sequence[int] = (64, 64, 32), **style) -> Classifier:
    """Multi-layer perceptron on the flattened image; `style` takes the options of `Style`.

    The network of the propositions of arXiv 2308.09565, section 4: W n(rho(A_L ... n(rho(A_1 x)))). With
    `hidden=()` it is logistic regression.

    Raises:
        ValueError: a norm without a hidden layer.
    """
    if norm != "none" and not hidden:
        raise ValueError(f"hidden must name at least one layer for norm={norm!r}; got an empty one.")
    return _classifier(shape, classes, _style(norm, style, ["hidden"]), hidden=hidden)


def ln_net(shape: Shape, classes: int, norm: str = "layer", width: int = 64, depth: int = 4, **style) -> Classifier:
    """LN-Net: `depth` layers of `width` features, each linear and then a norm, with no activation; a linear head.

    What it computes beyond an affine map, its norms compute. With norm="none" it is an affine map; with "batch" it is
    one in evaluation mode. Biases in every linear layer; norms without gamma and beta, which the next linear layer
    would absorb. `style` as in `Style`; slope=0 puts a ReLU before every norm, for comparison.

    Source: arXiv 2406.01255, the networks of its theorems and of its experiments on random labels.
    """
    checks.whole(depth=depth, width=width)
    options = {"bias": True, "affine": False, "slope": 1.0, **style}
    return _classifier(shape, classes, _style(norm, options, ["width", "depth"]), hidden=(width,) * depth)


def cnn(shape: Shape, classes: int, norm: str = "none", width: int = 64, hidden: int = 384, **style) -> Classifier:
    """conv 5x5, 64 - pool - conv 5x5, 64 - pool - dense 384 - head: the CNN of arXiv 2308.09565, table 7.

    No padding, no biases, 2x2 max-pooling, ReLU and then the norm after every layer but the head; 725,440 weights for
    10 classes of 3x32x32 images. The table prints an input of 28x28x3 but 1600 features after the convolutions, which
    take 32x32. The paper's code has one more dense layer, of 192. `width` and `hidden` scale the 64 channels and the
    384 features; `style` as in `Style`. Images must be 16 pixels high and wide at least.
    """
    return _classifier(shape, classes, _style(norm, style), channels=(width, width), kernel=5, hidden=(hidden,))


def slim_cnn(shape: Shape, classes: int, norm: str = "none", width: int = 16, hidden: int = 64, **style) -> Classifier:
    """`cnn` made small for 8x8 digits: conv 3x3, `width` - pool - conv 3x3, 2 `width` - pool - dense - head.

    Padding 1, no biases, the order of layers of `cnn`; 13,584 weights for 10 classes of 1x8x8 images. `style` as in
    `Style`. Images must be 4 pixels high and wide at least.
    """
    return _classifier(
        shape, classes, _style(norm, style), channels=(width, 2 * width), kernel=3, padding=1, hidden=(hidden,)
    )


def small_cnn(shape: Shape, classes: int, norm: str = "none", width: int = 16, hidden: int = 64, **style) -> Classifier:
    """conv 3x3, 16 - pool - conv 3x3, 32 - pool - dense 64 - head, padding 1, with biases; `style` as in `Style`."""
    return _classifier(
        shape,
        classes,
        _style(norm, {"bias": True, **style}),
        channels=(width, 2 * width),
        kernel=3,
        padding=1,
        hidden=(hidden,),
    )


def digits_cnn(
    shape: Shape, classes: int, norm: str = "none", width: int = 64, hidden: Sequence[int] = (2048, 512), **style
) -> Classifier:
    """FedBN's digits CNN (Li et al. 2021, arXiv 2102.07623, and its code), which FedWon uses for Digits-Five.

    conv 5x5, 64 - pool - conv 5x5, 64 - pool - conv 5x5, 128 - dense 2048 - dense 512 - head; padding 2, biases, the
    norm before every ReLU, dense layers included. 14,219,210 parameters with batch norm and 14,213,578 without norm,
    for 10 classes of 3x28x28 images. `width` and `hidden` scale it; `style` as in `Style`.
    """
    return _classifier(
        shape,
        classes,
        _style(norm, {"where": "before", "bias": True, **style}),
        channels=(width, width, 2 * width),
        kernel=5,
        padding=2,
        hidden=hidden,
        pools=2,
    )


def slim_digits_cnn(
    shape: Shape, classes: int, norm: str = "none", width: int = 8, hidden: Sequence[int] = (32,), **style
) -> Classifier:
    """`digits_cnn` made small for 16x16 digits: 3x3 convolutions with 8, 8 and 16 channels, one dense layer."""
    return _classifier(
        shape,
        classes,
        _style(norm, {"where": "before", "bias": True, **style}),
        channels=(width, width, 2 * width),
        kernel=3,
        padding=1,
        hidden=hidden,
        pools=2,
    )


def alexnet(shape: Shape, classes: int, norm: str = "none", width: int = 64, hidden: int = 4096, **style) -> Classifier:
    """FedBN's AlexNet (Li et al. 2021, and its code): batch norm in place of dropout; FedWon uses it for Office.

    conv 11x11, 64, stride 4 - pool - conv 5x5, 192 - pool - conv 3x3, 384 - conv 3x3, 256 - conv 3x3, 256 - pool -
    6x6 average pooling - dense 4096 - dense 4096 - head. Pooling 3x3 with stride 2, biases, the norm before every ReLU.
    57,044,810 parameters without norm, 57,063,498 with batch norm, for 10 classes of 3-channel images. (torchvision's
    AlexNet has dropout and no norm.) `width` and `hidden` scale it; `style` as in `Style`. Images must be 63 pixels
    high and wide at least.
    """
    _check_shape(shape, classes, 63)
    style = _style(norm, {"where": "before", "bias": True, **style})
    convs = (
        (width, 11, 4, 2, True),
        (3 * width, 5, 1, 2, True),
        (6 * width, 3, 1, 1, False),
        (4 * width, 3, 1, 1, False),
        (4 * width, 3, 1, 1, True),
    )
    layers, size_in = [], shape[0]
    for index, (size, kernel, stride, padding, pooled) in enumerate(convs, start=1):
        conv = style.conv(size_in, size, kernel, stride=stride, padding=padding)
        layers += style.layer(f"conv{index}", index, conv, False, MaxPool2d(3, 2) if pooled else None)
        size_in = size
    layers += [("average", nn.AdaptiveAvgPool2d(6)), ("flatten", nn.Flatten())]
    size_in *= 36
    for index in (1, 2):
        dense = nn.Linear(size_in, hidden, bias=style.bias)
        layers += style.layer(f"fc{index}", len(convs) + index, dense, index == 2)
        size_in = hidden
    return Classifier(nn.Sequential(OrderedDict(layers)), nn.Linear(hidden, classes, bias=style.bias))


def _style(norm: str, options: dict, own: Sequence[str] = ("width", "hidden")) -> Style:
    """The Style of `options`; `own` are the options the builder has besides, named in the error."""
    for option in options:
        checks.choice("option", option, [*own, *(field.name for field in fields(Style))])
    return Style(norm=norm, **options)


def _check_shape(shape: Shape, classes: int, smallest: int = 1) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width), each 1 or more; got {tuple(shape)}.")
    if min(shape[1:]) < smallest:
        raise ValueError(f"shape: images must be at least {smallest}x{smallest} for this model; got {tuple(shape)}.")
    if classes < 2:
        raise ValueError(f"classes must be 2 or more; got {classes}.")


def _classifier(
    shape: Shape,
    classes: int,
    style: Style,
    *,
    channels: Sequence[int] = (),
    kernel: int = 3,
    padding: int = 0,
    hidden: Sequence[int] = (),
    pools: int | None = None,
) -> Classifier:
    """Convolutions, all or the first `pools` of them with 2x2 max-pooling, then dense layers, then a linear head."""
    trim, smallest = kernel - 1 - 2 * padding, 1
    pools = len(channels) if pools is None else pools
    for index in range(len(channels), 0, -1):  # from 1x1 at the end backwards, through each pooling and convolution
        smallest = (2 if index <= pools else 1) * smallest + trim
    _check_shape(shape, classes, smallest)
    size_in, *sides = shape
    layers, index, last = [], 0, len(channels) + len(hidden)
    for size in channels:
        index += 1
        conv, pooled = style.conv(size_in, size, kernel, padding=padding), index <= pools
        layers += style.layer(f"conv{index}", index, conv, index == last, MaxPool2d(2) if pooled else None)
        size_in, sides = size, [(side - trim) // (2 if pooled else 1) for side in sides]
    layers.append(("flatten", nn.Flatten()))
    size_in *= sides[0] * sides[1]
    for size in hidden:
        index += 1
        dense = nn.Linear(size_in, size, bias=style.bias)
        layers += style.layer(f"fc{index - len(channels)}", index, dense, index == last)
        size_in = size
    return Classifier(nn.Sequential(OrderedDict(layers)), nn.Linear(size_in, classes, bias=style.bias))


class ResidualBlock(nn.Module):
    """The basic block of He et al. 2016 (arXiv 1512.03385): two 3x3 convolutions and a shortcut.

    rho is ReLU, A_i a convolution, S the identity or, where the shape changes, a 1x1 convolution.

        before   rho(N A_2 rho(N A_1 x) + N S x)      norm in the usual place: batch, group, none
        after    N rho(A_2 N rho(A_1 x) + S x)        arXiv 2308.09565, section 4: layer

    With `activation=False` rho is left out, as in the ResNets of arXiv 2406.01255.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        norm: Callable[[int], nn.Module],
        after: bool,
        activation: bool = True,
        conv: Callable[..., nn.Conv2d] = nn.Conv2d,
    ):
        super().__init__()
        self.conv1 = conv(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.conv2 = conv(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.shortcut, self.shortcut_norm = nn.Identity(), nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = conv(channels_in, channels, 1, stride=stride, bias=False)
            self.shortcut_norm = nn.Identity() if after else norm(channels)
        self.after, self.rho = after, nn.ReLU() if activation else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rho, short = self.rho, self.shortcut_norm(self.shortcut(x))
        if self.after:
            return self.norm2(rho(self.conv2(self.norm1(rho(self.conv1(x)))) + short))
        return rho(self.norm2(self.conv2(rho(self.norm1(self.conv1(x))))) + short)


class GlobalAveragePool(nn.Module):
    """(B, C, H, W) -> (B, C): the mean over the positions, or over the `corner` x `corner` first of them."""

    def __init__(self, corner: int | None = None):
        super().__init__()
        self.corner = corner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.corner, : self.corner].mean((2, 3))


def resnet18(
    shape: Shape,
    classes: int,
    norm: str = "none",
    *,
    groups: int = 2,
    affine: bool = True,
    eps: float = 1e-5,
    width: int = 64,
    corner: int | None = None,
) -> Classifier:
    """ResNet-18 for small images (He et al. 2016) in the forms of arXiv 2308.09565; head with bias.

    Stem: 3x3 convolution with stride 1, no max-pooling. Four stages of two `ResidualBlock` with `width` times 1, 2,
    4 and 8 channels, halving the image between stages. Global average pooling: d = 8 `width`. (The paper's code pools
    4x4 windows, the same for 32x32 images; for larger ones it has more features.)

    none         no normalisation at all
    batch/group  convolution, norm, ReLU; also on the shortcut
    layer        MeanVarNorm after the ReLU; the second one after the residual addition; none on the shortcut
    feature      ScaleNorm of the pooled feature, no other norm
    wsconv       no norm; every convolution a ScaledWSConv2d, residual sums as they are (FedWon says nothing of them)

    11,164,362 parameters without norm and 11,173,962 with batch or group norm, for 10 classes of 3-channel images.

    `norm="group", corner=3` is the network of FedNAR's code (arXiv 2310.03163): two groups, and of the last 4x4 map of
    a 32x32 image only the first 3x3 positions are pooled, because the code pools windows of 3 with a stride of 3.
    """
    checks.choice("norm", norm, ("none", "batch", "group", "layer", "feature", "wsconv"))
    _check_shape(shape, classes)
    if corner is not None and corner < 1:
        raise ValueError(f"corner must be 1 or more positions, or None for all of them; got {corner}.")
    kind, after = ("none" if norm in ("feature", "wsconv") else norm), norm == "layer"
    conv = ScaledWSConv2d if norm == "wsconv" else nn.Conv2d

    def make_norm(channels: int) -> nn.Module:
        return norm_layer(kind, channels, spatial=True, affine=affine, groups=groups, eps=eps)

    layers, channels = _residual_stages(
        shape[0], width, stages=4, blocks=2, norm=make_norm, after=after, corner=corner, conv=conv
    )
    if norm == "feature":
        layers.append(("norm", ScaleNorm(eps)))
    return Classifier(nn.Sequential(OrderedDict(layers)), nn.Linear(channels, classes))


def resnet20(
    shape: Shape,
    classes: int,
    norm: str = "batch",
    *,
    activation: bool = True,
    width: int = 16,
    blocks: int = 3,
    groups: int = 2,
    size: int | None = None,
    affine: bool = True,
    eps: float = 1e-5,
) -> Classifier:
    """The ResNet for small images of He et al. 2016 (arXiv 1512.03385, section 4.2), with or without activations.

    3x3 convolution, three stages of `blocks` `ResidualBlock` with `width`, 2 `width` and 4 `width` channels, halving
    the image between stages, global average pooling, head with bias. Every norm stands where batch norm does: after
    each convolution. Shortcuts that change the shape are 1x1 convolutions (He's option B; his CIFAR networks pad with
    zeros). The default is ResNet-20; blocks=1 and a smaller width make it slim.

    norm: none, batch, group, layer, ln-g (see `norms.norm_layer`); `groups` or `size` for group and ln-g.
    activation=False leaves out every ReLU. Then all that is not linear in the network is its norms: none, in evaluation
    mode, with "none" and "batch". Source: arXiv 2406.01255, its ResNet without activations.
    """
    checks.choice("norm", norm, ("none", "batch", "group", "layer", "ln-g"))
    _check_shape(shape, classes)
    checks.whole(width=width, blocks=blocks)

    def make_norm(channels: int) -> nn.Module:
        return norm_layer(norm, channels, spatial=True, affine=affine, groups=groups, size=size, eps=eps)

    layers, channels = _residual_stages(shape[0], width, stages=3, blocks=blocks, norm=make_norm, activation=activation)
    return Classifier(nn.Sequential(OrderedDict(layers)), nn.Linear(channels, classes))


def _residual_stages(
    channels: int,
    width: int,
    *,
    stages: int,
    blocks: int,
    norm: Callable[[int], nn.Module],
    after: bool = False,
    activation: bool = True,
    corner: int | None = None,
    conv: Callable[..., nn.Conv2d] = nn.Conv2d,
) -> tuple[Layers, int]:
    """The named layers of a ResNet's body, and how many features they give: stem, `stages` stages, pooling."""
    stem: Layers = [("norm", norm(width))] + ([("act", nn.ReLU())] if activation else [])
    stem = [("conv", conv(channels, width, 3, padding=1, bias=False))] + (stem[::-1] if after else stem)
    layers: Layers = [("stem", nn.Sequential(OrderedDict(stem)))]
    channels = width
    for stage in range(stages):
        out = width * 2**stage
        block = [
            ResidualBlock(out if i else channels, out, 2 if stage and not i else 1, norm, after, activation, conv)
            for i in range(blocks)
        ]
        layers.append((f"stage{stage + 1}", nn.Sequential(*block)))
        channels = out
    return [*layers, ("pool", GlobalAveragePool(corner))], channels


class AttentionBlock(nn.Module):
    """One layer of a transformer's encoder (Vaswani et al. 2017, arXiv 1706.03762): (B, L, d) -> (B, L, d).

        x <- LN(x + A(x)),  x <- LN(x + W_2 relu(W_1 x))

    A is softmax(q k' / sqrt(d / heads)) v in each head, every position looking at every other. It is torch's
    TransformerEncoderLayer, written out because its attention kernel for CPUs cannot be stacked by vmap.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.dropout(self.out(self.attend(x))))
        return self.norm2(x + self.dropout(self.narrow(self.dropout(F.relu(self.wide(x))))))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, d / heads)
        weights = self.dropout((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1))
        return (weights @ v).transpose(1, 2).flatten(2)


class CharacterBody(nn.Module):
    """Character numbers (B, L), integers below `vocabulary`, -> the last position's feature (B, d).

    Characters and positions have learned embeddings; their sum goes through the layers.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, layers: int, heads: int, feedforward: int, dropout: float
    ):
        super().__init__()
        self.characters, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads, feedforward, dropout) for _ in range(layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.dropout(self.characters(x) + self.positions.weight))[:, -1]


def char_transformer(
    shape: tuple[int],
    classes: int,
    *,
    width: int = 128,
    layers: int = 6,
    heads: int = 4,
    feedforward: int = 512,
    dropout: float = 0.1,
) -> Classifier:
    """Transformer encoder that predicts the next character, of FedNAR's code (arXiv 2310.03163).

    `shape` is (L,), the length of a window; `classes` the number of different characters. No causal mask: only the last
    position predicts. 1,220,432 parameters for windows of 80 of 80 characters. With dropout, runs on several threads
    do not repeat; take 0 where they must.

    Raises:
        ValueError: sizes below 1, heads that do not divide `width`, dropout outside [0, 1), or fewer than 2 classes.
    """
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"shape must be (length of a window,), 1 or more; got {tuple(shape)}.")
    checks.whole(width=width, layers=layers, heads=heads, feedforward=feedforward)
    if width % heads:
        raise ValueError(f"heads must divide width: got heads={heads} for width={width}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1); got {dropout}.")
    if classes < 2:
        raise ValueError(f"classes must be 2 or more; got {classes}.")
    body = CharacterBody(classes, shape[0], width, layers, heads, feedforward, dropout)
    return Classifier(body, nn.Linear(width, classes))


def small_char_transformer(
    shape: tuple[int],
    classes: int,
    *,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
    feedforward: int = 64,
    dropout: float = 0.0,
) -> Classifier:
    """`char_transformer` made small, and without dropout, for texts of some hundred kilobytes and a CPU."""
    return char_transformer(
        shape, classes, width=width, layers=layers, heads=heads, feedforward=feedforward, dropout=dropout
    )


class PreNormBlock(AttentionBlock):
    """One layer of a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): (B, T, width) -> (B, T, width).

        x <- x + A(N_1 x),  x <- x + W_2 gelu(W_1 N_2 x)

    `AttentionBlock` with the norms first in each branch, and with a choice of norm; four times the width inside.
    """

    def __init__(self, width: int, heads: int, norm: Callable[[], nn.Module]):
        super().__init__(width, heads, 4 * width, dropout=0.0)
        self.norm1, self.norm2 = norm(), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.out(self.attend(self.norm1(x)))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Patches(nn.Module):
    """(B, C, H, W) -> tokens (B, T, width): a linear map of each patch, plus what is learned for its place."""

    def __init__(self, shape: Shape, patch: int, width: int):
        super().__init__()
        self.embed = nn.Conv2d(shape[0], width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(shape[1] // patch * (shape[2] // patch), width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.place


class BlockBody(nn.Module):
    """Patches, then blocks 1 to L, a last norm, the mean of the tokens: (B, C, H, W) -> features (B, width).

    Attributes (`run_only` sets them):
        running: numbers of the blocks that run in training mode, from 1; all at first. The others are not called: what
            comes out of a block goes past them.
        grown: number of the newest block, at which the network ends in both modes. In evaluation mode all blocks up to
            it run.
    """

    def __init__(self, patches: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.patches, self.blocks, self.norm = patches, nn.ModuleList(blocks), norm or nn.Identity()
        self.running, self.grown = tuple(range(1, self.depth + 1)), self.depth

    @property
    def depth(self) -> int:
        """L, the number of blocks that there are, running or not."""
        return len(self.blocks)

    def run_only(
        self, running: Iterable[int], grown: int | None = None, learning: Collection[int] | None = None
    ) -> None:
        """Choose the blocks that run in training, where the network ends, and the blocks that learn.

        Args:
            running: numbers of blocks, from 1.
            grown: where the network ends; by default at the last block that runs.
            learning: those of the running blocks that learn; all others are frozen, and the patches unless block 1
                learns. By default what learns stays as it is.

        Raises:
            ValueError: no block runs, or there are fewer blocks, or one above `grown` is to run.
        """
        chosen = tuple(sorted(set(running)))
        last = max(chosen, default=0) if grown is None else grown
        if not chosen or chosen[0] < 1 or not chosen[-1] <= last <= self.depth:
            raise ValueError(
                f"running must name blocks from 1 to grown, which is {self.depth} at most; got {list(chosen)} and "
                f"grown={grown}"
            )
        self.running, self.grown = chosen, last
        if learning is not None:
            self.patches.requires_grad_(1 in learning)
            for number, block in enumerate(self.blocks, start=1):
                block.requires_grad_(number in learning and number in chosen)

    def stage(self) -> tuple[int, ...]:
        """What a training step consists of: the blocks that run."""
        return self.running

    def left_out(self) -> set[str]:
        """Names of the parameters of all blocks that do not run in training."""
        numbers = set(range(1, self.depth + 1)) - set(self.running)
        return {f"blocks.{n - 1}.{name}" for n in numbers for name, _ in self.blocks[n - 1].named_parameters()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        for number, block in enumerate(self.blocks[: self.grown], start=1):
            if not self.training or number in self.running:
                x = block(x)
        return self.norm(x).mean(1)

    def depths(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, L, width): the features that the network has if it ends after block 1, 2, ..., L.

        All blocks run, whatever is grown or running.
        """
        x, found = self.patches(x), []
        for block in self.blocks:
            x = block(x)
            found.append(self.norm(x).mean(1))
        return torch.stack(found, dim=1)


def vit_tiny(
    shape: Shape,
    classes: int,
    norm: str = "layer",
    *,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    groups: int = 2,
    size: int | None = None,
    eps: float = 1e-5,
) -> Classifier:
    """A small vision transformer: patches, `depth` blocks `PreNormBlock`, a last norm, the mean of the tokens, a head.

    norm, of each token by itself:

    none     no normalisation
    layer    torch's LayerNorm over the `width` features
    ln-g     GroupedLayerNorm with `groups` groups, or groups of `size` features

    Sides of the image must be multiples of `patch`, and `width` one of `heads`. Source: arXiv 2010.11929, with mean
    pooling in place of a class token.
    """
    checks.choice("norm", norm, ("none", "layer", "ln-g"))
    _check_shape(shape, classes)

    def make_norm() -> nn.Module:
        if norm == "ln-g":
            return GroupedLayerNorm(width, groups if size is None else None, size=size, eps=eps)
        return nn.LayerNorm(width, eps=eps) if norm == "layer" else nn.Identity()

    return Classifier(_vit_body(shape, patch, width, depth, heads, make_norm, make_norm()), nn.Linear(width, classes))


def vit_encoder(
    shape: Shape,
    out: int = 128,
    *,
    patch: int = 16,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    hidden: int = 512,
) -> Classifier:
    """A vision transformer to be trained without labels: `BlockBody` without a last norm, then a projection head.

    The head is LayerNorm - Linear - GELU - Linear to `out` numbers. It is thrown away after training: what is kept are
    the body's features, which have no last norm so that those of block s are the same whatever stands above it. The
    defaults are ViT-Ti/16 (arXiv 2010.11929; Touvron et al. 2021, arXiv 2012.12877): 12 blocks of 444,864 parameters.
    Sides of the image must be multiples of `patch`, and `width` one of `heads`.
    """
    _check_shape(shape, out)
    checks.whole(hidden=hidden)
    body = _vit_body(shape, patch, width, depth, heads, lambda: nn.LayerNorm(width))
    return Classifier(
        body, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
    )


def _vit_body(
    shape: Shape,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    make_norm: Callable[[], nn.Module],
    last: nn.Module | None = None,
) -> BlockBody:
    checks.whole(patch=patch, width=width, depth=depth, heads=heads)
    if shape[1] % patch or shape[2] % patch:
        raise ValueError(f"patch must divide both sides of the image, {shape[1]} and {shape[2]}; got {patch}.")
    if width % heads:
        raise ValueError(f"heads must divide width={width}; got {heads}.")
    return BlockBody(Patches(shape, patch, width), [PreNormBlock(width, heads, make_norm) for _ in range(depth)], last)


def plain_twin(model: Classifier) -> Classifier:
    """An MLP without norms that decides every input as `model` does: the construction behind proposition 3.

    `model` is an `mlp` with norm none, feature, shift or layer (affine=False), on either side of the activation, any
    `places`. Only the first layer may have a bias. With P = I - 1 1'/d and positive numbers c depending on x,

        after the activation   h_i = n_MV(rho(U_i h_{i-1})) = c P rho(U_i h_{i-1}):   U_i P for i >= 2, and W P
        before it              h_i = rho(n_MV(U_i h_{i-1})) = c rho(P U_i h_{i-1}):   P U_i (and P b_1)

    replace U_i and W. (Leaky)ReLU lets the positive c through to the logits, where it does not move the arg max. eps
    does no harm: it changes c alone. A scale norm is a c by itself and just goes.

    Exact for MLPs only. In a CNN the mean runs over all positions of an image, and subtracting it is no convolution.

    Source: arXiv 2308.09565, proposition 3 and appendix B.

    Returns:
        A new Classifier; `model` is left as it was.

    Raises:
        ValueError: a layer that the proposition excludes.
    """
    twin = copy.deepcopy(model)
    kept, shift_input, previous, first = OrderedDict(), False, None, True
    for name, module in [*twin.body.named_children(), ("head", twin.head)]:
        _check_twin(name, module, first)
        if isinstance(module, nn.Linear):
            if shift_input:
                _shift(module.weight, 1)
            shift_input, first = False, False
        if isinstance(module, (MeanVarNorm, MeanShift)):
            if isinstance(previous, nn.Linear):
                for parameter in previous.parameters():
                    _shift(parameter, 0)
            else:
                shift_input = True
        elif not isinstance(module, ScaleNorm):
            kept[name] = module
        previous = module
    head = kept.pop("head")
    return Classifier(nn.Sequential(kept), head)


def _shift(matrix: torch.Tensor, dim: int) -> None:
    """P U for dim 0, U P for dim 1, in place."""
    with torch.no_grad():
        matrix -= matrix.mean(dim, keepdim=True)


def _check_twin(name: str, module: nn.Module, first: bool) -> None:
    """Refuse a layer that proposition 3 does not cover; `first` says that no linear layer came before it."""
    if not isinstance(module, (nn.Flatten, nn.Linear, nn.ReLU, nn.LeakyReLU, MeanVarNorm, MeanShift, ScaleNorm)):
        raise ValueError(
            f"model: plain_twin takes an mlp with norm none, feature, shift or layer; its layer {name!r} "
            f"is a {type(module).__name__}."
        )
    if isinstance(module, MeanVarNorm) and module.affine:
        raise ValueError(f"model: plain_twin takes norms with affine=False; {name!r} has a learnable affine.")
    if isinstance(module, nn.Linear) and module.bias is not None and not first:
        raise ValueError(f"model: plain_twin takes biases in the first layer only; {name!r} has one.")


def parameters(model: nn.Module) -> int:
    """The number of learnable parameters, P."""
    return sum(parameter.numel() for parameter in model.parameters())


MODELS: dict[str, Callable[..., Classifier]] = {
    "mlp": mlp,
    "cnn": cnn,
    "slim_cnn": slim_cnn,
    "small_cnn": small_cnn,
    "resnet18": resnet18,
    "char_transformer": char_transformer,
    "small_char_transformer": small_char_transformer,
    "ln_net": ln_net,
    "resnet20": resnet20,
    "vit_tiny": vit_tiny,
    "digits_cnn": digits_cnn,
    "slim_digits_cnn": slim_digits_cnn,
    "alexnet": alexnet,
}


def build(name: str, shape: Shape, classes: int, **options) -> Classifier:
    """The model called `name` (a key of `MODELS`) for examples of `shape` (`Data.shape`) and `classes` classes.

    `options` go to its function.

    Raises:
        ValueError: an unknown name or option.
    """
    checks.choice("name", name, MODELS)
    return MODELS[name](shape, classes, **options)

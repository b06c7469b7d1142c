"""What happens inside a layer: normalisations of one sample or of one batch.

x is one sample's vector of d entries: all of (C, H, W) after a convolution, all of (d,) after a dense layer.
mu(x) is the mean of its entries, sigma(x) their population standard deviation, 1 the vector of ones.

    mean-variance norm   n_MV(x) = (x - mu 1) / sigma            "layer"
    scale norm           n(x) = sqrt(d) x / ||x||                "feature"
    mean shift           s(x) = x - mu 1                         "shift"

Source: Zhang et al., Understanding the Role of Layer Normalization in Label-Skewed Federated Learning,
TMLR 2024 (arXiv 2308.09565), section 2. These three see one sample at a time: they keep no running statistics
and do the same in training and at test. So does `GroupedLayerNorm`, n_MV inside groups of features: LN-G ("ln-g") of
Ni et al., On the Nonlinearity of Layer Normalization, ICML 2024 (arXiv 2406.01255).

Networks without any normalisation keep their signals in bounds by their weights (`ScaledWSConv2d`) and their steps in
bounds by their gradients (`adaptive_clip`).
"""

import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from fedlib import checks

Units = tuple[tuple[int, int], ...]  # of the columns of a row, from left to right: (how many units, columns of each)

__all__ = [
    "KINDS",
    "BatchNorm",
    "GroupedLayerNorm",
    "MeanShift",
    "MeanVarNorm",
    "ScaleNorm",
    "ScaledReLU",
    "ScaledWSConv2d",
    "adaptive_clip",
    "norm_layer",
    "relu_gain",
    "standardise_rows",
    "unit_norms",
]

KINDS = ("none", "batch", "group", "layer", "feature", "shift", "ln-g")


class MeanVarNorm(nn.GroupNorm):
    """Mean-variance normalisation of each sample, the paper's layer normalisation.

        n_MV(x) = (x - mu(x) 1) / sqrt(sigma(x)^2 + eps),  then  gamma n_MV(x) + beta  if `affine`

    mu and sigma run over all C*H*W (or all d) entries of one sample; gamma and beta hold one number a channel (or a
    feature) and start at 1 and 0. Input (B, C, H, W) or (B, d), any float dtype; output of the same shape.

    On images this is GroupNorm with one group, not a LayerNorm over the channels of each position. It is computed
    by torch's group norm, which has a channels-last kernel on CPUs.

    Source: arXiv 2308.09565, section 2; the learnable affine is the paper's default (table 6); eps as in its code.
    """

    def __init__(self, channels: int, affine: bool = True, eps: float = 1e-5):
        super().__init__(1, channels, eps=eps, affine=affine)


class ScaleNorm(nn.Module):
    """Scale normalisation of each sample: all of them get the length sqrt(d).

        n(x) = sqrt(d) x / max(||x||, eps)

    The norm runs over all d entries of one sample, (C, H, W) or (d,); d is read from the input. This is RMSNorm
    without gain, with eps as a floor under the length (torch's rms_norm adds it to the mean square). On the last
    hidden layer it is the paper's feature normalisation. There is no mean shift in it. A zero vector stays zero.

    Source: arXiv 2308.09565, section 2, eq. (6); eps from appendix C.1.
    """

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = tuple(range(1, x.dim()))  # not flatten: it would copy a channels-last tensor
        length = torch.linalg.vector_norm(x, dim=features, keepdim=True)
        return x / length.clamp_min(self.eps) * math.sqrt(math.prod(x.shape[1:]))

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MeanShift(nn.Module):
    """Mean shift of each sample: s(x) = x - mu(x) 1, with mu over all entries of (C, H, W) or (d,).

    What is left of n_MV in the earlier layers once a later layer rescales.
    Source: arXiv 2308.09565, proposition 2.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(tuple(range(1, x.dim())), keepdim=True)


class GroupedLayerNorm(nn.Module):
    """LN-G: the d features are cut into g groups of c = d / g neighbours, and each group is normalised by itself.

        n_MV(x_k) = (x_k - mu_k 1) / sqrt(sigma_k^2 + eps),  k = 1..g,  then  gamma * . + beta  if `affine`

    Input (B, d) or, for tokens, (B, T, d): features last; or images (B, C, H, W) with the channels as features. On
    images every position is normalised by itself, over channels only, where torch's GroupNorm takes the channels of a
    group at all H*W positions together. `pool=True` does that too and is GroupNorm. One group is torch's LayerNorm over
    the features. gamma and beta hold one number a feature.

    A constant group gives zeros (before beta), thanks to eps. A NaN spoils its own group and nothing else.

    Args:
        features: d, or the channels of an image.
        groups: g. Give this or `size`.
        size: c, features in a group.
        pool: on images, take statistics over the positions too.
        affine: learn gamma and beta.
        eps: added to the variance; 0 is exact and gives NaN for a constant group.

    Raises:
        ValueError: groups that do not divide the features, groups of one feature, whose output is the constant 0, or a
            negative eps. (Groups of two give a warning: their output is (1, -1) or (-1, 1), a sign, whose slope is a
            spike of 1 / (2 sqrt(eps)) where the two are equal, and nearly 0 elsewhere.)

    Source: arXiv 2406.01255, the LN-G of its title's question; per position as in `Musicath/Parallel-LN`, by its first
    author.
    """

    def __init__(
        self,
        features: int,
        groups: int | None = None,
        *,
        size: int | None = None,
        pool: bool = False,
        affine: bool = True,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.features, self.groups, self.pool, self.eps = features, _groups(features, groups, size), pool, eps
        if not eps >= 0:
            raise ValueError(f"eps must be 0 or more, got {eps!r}")
        size = features // self.groups
        if size == 1:
            raise ValueError(
                "a group must hold two features at least, three to bend anything: got "
                f"{self.groups} groups for {features} features, and one feature minus its own mean is "
                "always 0"
            )
        if size == 2:
            warnings.warn(
                f"{self.groups} groups of two features: layer normalization of two features gives (1, -1) or "
                "(-1, 1), a sign; its slope is nearly 0 but for a spike where the two are equal, which shakes the "
                "layers below and teaches them nothing. Take three features or more",
                stacklevel=2,
            )
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool and x.dim() == 4:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        last = x.movedim(1, -1) if x.dim() == 4 else x
        if last.shape[-1] != self.features:
            raise ValueError(
                f"GroupedLayerNorm({self.features}) takes {self.features} features, got an input of shape "
                f"{tuple(x.shape)}"
            )
        groups = last.unflatten(-1, (self.groups, -1))
        out = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)
        if self.weight is not None and self.bias is not None:
            out = out * self.weight + self.bias
        return out.movedim(-1, 1) if x.dim() == 4 else out

    def extra_repr(self) -> str:
        return (
            f"{self.features}, groups={self.groups}, pool={self.pool}, affine={self.weight is not None}, eps={self.eps}"
        )


def _groups(features: int, groups: int | None, size: int | None) -> int:
    """The number of groups, given as such or by the features in each."""
    if (groups is None) == (size is None):
        raise ValueError(f"give either groups or size, the features in a group; got groups={groups}, size={size}")
    name, value = ("groups", groups or 0) if size is None else ("size", size)
    if not checks.is_whole(value) or value < 1 or features % value:
        fits = ", ".join(str(n) for n in range(1, features + 1) if features % n == 0)
        raise ValueError(f"{name} must divide the number of features, {features}: one of {fits}; got {value!r}")
    return value if size is None else features // value


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation: torch's, without the counter `num_batches_tracked`.

        y = gamma (x - mean_c) / sqrt(var_c + eps) + beta

    mean and (population) variance of channel c over the batch in training, the running ones at test. The counter
    goes because servers average float buffers only and a fixed momentum has no use for it.

    Input (B, C, H, W) if `spatial`, else (B, C). A training batch must hold more than one value a channel, so a
    client's last batch must not be a single sample where the input is (B, C); torch raises ValueError.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1.
    """

    def __init__(self, channels: int, spatial: bool, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(channels, eps=eps, momentum=momentum, affine=affine)
        self.spatial = spatial
        self.num_batches_tracked = None

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() != (4 if self.spatial else 2):
            expected = "(B, C, H, W)" if self.spatial else "(B, C)"
            raise ValueError(f"BatchNorm(spatial={self.spatial}) takes {expected}, got shape {tuple(input.shape)}.")

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        # A plain dict of tensors carries no version, and for those torch would add the counter, then refuse it.
        metadata = {**local_metadata, "version": self._version}
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)


def relu_gain(slope: float = 0.0) -> float:
    """gamma with Var(gamma rho(z)) = 1 for z ~ N(0, 1), where rho is the (leaky) ReLU of that slope.

        gamma^-2 = (1 + slope^2) / 2 - (1 - slope)^2 / (2 pi);   slope 0: sqrt(2) / sqrt(1 - 1/pi) = 1.71286...

    Published tables have it from simulation: 1.71396 (timm, DeepMind). FedWon calls it "a constant number".
    Source: Brock et al. 2021 (arXiv 2101.08692), section 4.2.
    """
    return ((1 + slope**2) / 2 - (1 - slope) ** 2 / (2 * math.pi)) ** -0.5


def standardise_rows(weight: torch.Tensor, gamma: float = 1.0, eps: float = 1e-4) -> torch.Tensor:
    """gamma (W_i - mu_i) / (sigma_i sqrt(N)) for every output channel i; mean 0 and length gamma.

    weight (..., out, in/groups, kh, kw); row i is channel i, its N = in/groups * kh * kw entries are the fan-in, mu_i
    and sigma_i^2 (1/N, not 1/(N-1)) their mean and variance. `eps` is a floor under N sigma_i^2, so that a constant
    row gives zeros; above the floor it changes nothing.

    Source: FedWon (arXiv 2306.05879), eq. 3; the floor as in Brock et al. 2021.
    """
    fan_in = (-3, -2, -1)
    centred = weight - weight.mean(fan_in, keepdim=True)
    squares = centred.square().sum(fan_in, keepdim=True)  # N sigma^2
    return gamma * centred * squares.clamp(min=eps).rsqrt()


class ScaledWSConv2d(nn.Conv2d):
    """Convolution with scaled weight standardisation: it convolves with `standardise_rows(weight, gamma)`.

    Where a network's inputs are uncorrelated with equal mean and variance, its outputs have mean 0 and gamma^2 times
    that variance: what batch norm does to activations at initialisation, done to the weights, without a batch.

    `gamma` is the constant of the activation that precedes (`relu_gain`). `gain` adds a learnable factor for each
    output channel, 1 at first, as NFNets have it. The bias is outside of it. Initialisation is that of nn.Conv2d, and
    `weight` has its name, so one seed gives both the same weights.

    Sources disagree on three points (see chapter 3), which are arguments here: where the ReLU constant goes (`gamma`,
    or 1 with `ScaledReLU`, or nowhere), a learnable gain, and the floor `eps`.

    Source: FedWon (arXiv 2306.05879), eq. 3; Brock et al. 2021 (arXiv 2101.08692), section 4.2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        gamma: float = relu_gain(),
        gain: bool = False,
        eps: float = 1e-4,
        **options,
    ):
        super().__init__(in_channels, out_channels, kernel_size, **options)
        checks.positive(gamma=gamma)
        self.gamma, self.eps = gamma, eps
        self.gain = nn.Parameter(torch.ones(out_channels)) if gain else None

    def effective_weight(self) -> torch.Tensor:
        """The weight it convolves with, (out, in/groups, kh, kw)."""
        weight = standardise_rows(self.weight, self.gamma, self.eps)
        return weight if self.gain is None else weight * self.gain[:, None, None, None]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.effective_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma:.4g}, gain={self.gain is not None}"


class ScaledReLU(nn.Module):
    """gamma max(x, 0), the variance-preserving ReLU ("VPReLU"); gamma as in `relu_gain`, for a (leaky) ReLU."""

    def __init__(self, slope: float = 0.0):
        super().__init__()
        self.slope, self.gamma = slope, relu_gain(slope)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, self.slope) * self.gamma

    def extra_repr(self) -> str:
        return f"slope={self.slope}, gamma={self.gamma:.4g}"


def unit_norms(rows: torch.Tensor, units: Units) -> torch.Tensor:
    """Length of each unit's part of every row: rows (R, P), and what stands where in them -> (R, units)."""
    return torch.cat([part.norm(dim=2) for part in _by_unit(rows, units)], dim=1)


def _by_unit(rows: torch.Tensor, units: Units) -> list[torch.Tensor]:
    """Views of rows (R, P), one for each run of units of equal size, (R, units, columns)."""
    parts = rows.split([number * size for number, size in units], dim=1)
    return [part.unflatten(1, run) for part, run in zip(parts, units, strict=True)]


def adaptive_clip(
    G: torch.Tensor, W: torch.Tensor, units: Units, clipping: float | torch.Tensor, eps: float = 1e-3
) -> torch.Tensor:
    """Adaptive gradient clipping (AGC): shorten the gradient of each unit to `clipping` times the unit's length.

        G_i <- G_i * clipping * max(||W_i||, eps) / ||G_i||   where   ||G_i|| / max(||W_i||, eps) > clipping

    Source: Brock et al. 2021 (arXiv 2102.06171), eq. 3; eps as there. FedWon uses clipping 0.1.

    Args:
        G, W: (R, P), gradients and weights of R clients.
        units: how many units and columns of each, one pair for each run of equal units (`cohort.Layout.units`: a unit
            is an output channel of a weight, or a whole bias).
        clipping: the longest gradient, in lengths of the unit; or (R, 1), one for each client.
        eps: the least length of a unit.

    Returns:
        (R, P), the gradients.
    """
    if isinstance(clipping, torch.Tensor):
        clipping = clipping[..., None]
    clipped = []
    for g, w in zip(_by_unit(G, units), _by_unit(W, units), strict=True):
        allowed = clipping * w.norm(dim=2, keepdim=True).clamp(min=eps)
        factor = (allowed / g.norm(dim=2, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        clipped.append((g * factor).flatten(1))
    return torch.cat(clipped, dim=1)


def norm_layer(
    kind: str,
    channels: int,
    *,
    spatial: bool,
    affine: bool = True,
    groups: int = 2,
    size: int | None = None,
    eps: float = 1e-5,
) -> nn.Module:
    """One normalisation layer for activations with `channels` channels (features).

    kind      what it is                                              learnable (if affine)
    none      nn.Identity
    batch     BatchNorm over the batch                                gamma, beta: 2 * channels
    group     GroupNorm with `groups` groups of each sample           gamma, beta: 2 * channels
    layer     MeanVarNorm of each sample                              gamma, beta: 2 * channels
    feature   ScaleNorm of each sample
    shift     MeanShift of each sample
    ln-g      GroupedLayerNorm with `groups` groups                   gamma, beta: 2 * channels

    LN-G takes each position of an image by itself. `spatial` says whether the input is (B, C, H, W) or (B, C). `size`,
    channels in a group, takes the place of `groups` where it is given. `eps` goes to every kind that has one.

    Raises:
        ValueError: an unknown kind, `groups` or a `size` that do not divide `channels`, groups of one feature without
            positions, or what `GroupedLayerNorm` refuses.
    """
    checks.choice("norm", kind, KINDS)
    if kind == "batch":
        return BatchNorm(channels, spatial, affine=affine, eps=eps)
    if kind in ("group", "ln-g"):
        groups = _groups(channels, groups if size is None else None, size)
        if kind == "ln-g":
            return GroupedLayerNorm(channels, groups, affine=affine, eps=eps)
        if not spatial and groups == channels > 1:
            raise ValueError(
                f"groups must leave two features at least to a group, got {groups} for {channels} features: normalised "
                "by itself, one feature is the constant 0"
            )
        return nn.GroupNorm(groups, channels, eps=eps, affine=affine)
    if kind == "layer":
        return MeanVarNorm(channels, affine=affine, eps=eps)
    if kind == "feature":
        return ScaleNorm(eps)
    return MeanShift() if kind == "shift" else nn.Identity()

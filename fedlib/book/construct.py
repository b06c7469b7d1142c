"""What layer normalization can do by itself: a classifier of any labelled points whose weights are computed.

The network has width 3 and no activation: linear maps, and layer normalization (LN) of three features. Three
features minus their mean lie in a plane; LN projects that plane on a circle. So "linear, LN, linear" does this to a
line:

    lift       t -> (a t + b, 1), a line in the plane that misses the origin
    LN         its points move along their rays to the half circle, at angles theta in (0, pi)
    read out   t' = cos(theta - phi): the half circle is *folded* at phi, both sides onto one line

With phi = (theta_i + theta_j) / 2 the points i and j fall on each other. If they have the same label, one point
fewer is left to classify. Folding goes on until every class has an interval of the line to itself, which a linear map
can read. Each LN layer removes a point at least: m points of K classes need m - K of them at most.

Source: arXiv 2406.01255 states that width 3 and O(m) LN layers classify any m points. This construction (lift, LN,
merge along a chord) is chapter 6's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedlib.norms import GroupedLayerNorm

__all__ = ["PLANE", "Step", "classifier", "layers_needed", "steps"]

DIRECTIONS = 2048  # first projections to choose from
FOLDS = 256  # folds to choose from at every layer
TRIES = 8  # fresh starts before giving up
ROUNDING = torch.finfo(torch.float64).eps

# (3, 2), orthonormal, both columns orthogonal to (1, 1, 1): LN(PLANE u) = sqrt(3) PLANE u / ||u|| for u in R^2.
PLANE = torch.tensor(
    [[1 / math.sqrt(2), 1 / math.sqrt(6)], [-1 / math.sqrt(2), 1 / math.sqrt(6)], [0.0, -2 / math.sqrt(6)]],
    dtype=torch.float64,
)


def classifier(points: Tensor, labels: Tensor, classes: int | None = None, seed: int = 0) -> nn.Sequential:
    """A width-3 LN-Net that classifies all points: its weights are computed, nothing is trained.

    Args:
        points: (m, n), any float dtype; computed with in float64.
        labels: (m,) int64, from 0 to classes - 1.
        classes: number of logits; default the largest label + 1.
        seed: of the candidates among which each layer's fold is chosen, for the widest gap between classes.

    Returns:
        Linear, LN, Linear, ..., LN, Linear in float64: (B, n) -> (B, classes), with `layers_needed` LN layers at most.
        It has been checked to classify every point rightly, also when the points move by a few roundings.

    Raises:
        ValueError: wrong shapes or dtypes, points that are not finite, equal points with different labels (the pair is
            named), or points too close together for float64 to tell their classes apart.
    """
    points, labels, classes = _checked(points, labels, classes)
    if len(labels.unique()) == 1:
        answer = torch.eye(classes, dtype=torch.float64)[labels[0]]
        return nn.Sequential(_linear(points.new_zeros(classes, points.shape[1]), answer))
    for attempt in range(TRIES):
        rng = torch.Generator().manual_seed(seed * TRIES + attempt)
        net, noise = _build(points, labels, classes, rng), torch.randn(points.shape, generator=rng, dtype=points.dtype)
        if net is not None and _right(net, points, labels) and _right(net, points * (1 + 4 * ROUNDING * noise), labels):
            return net
    i, j = _closest(points, labels)
    apart, radius = (points[i] - points[j]).norm().item(), (points - points.mean(0)).norm(dim=1).max().item()
    raise ValueError(
        f"points: found no network that float64 can evaluate on all of them in {TRIES} tries; points {i} "
        f"and {j} have different labels and lie {apart:.1e} apart, in a cloud of radius {radius:.1e}"
    )


def _right(net: nn.Module, points: Tensor, labels: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(net(points).argmax(1), labels)


def layers_needed(points: Tensor, labels: Tensor) -> int:
    """The bound on LN layers: distinct points minus classes among them, m - K; m - 2 for two classes."""
    return len(points.unique(dim=0)) - len(labels.unique())


@dataclass(frozen=True)
class Step:
    """What one LN layer of a constructed network does to the points.

    Attributes:
        lifted: (m, 2), the points (a t + b, 1) in the plane, before LN.
        circle: (m, 2), on the unit half circle, after LN.
        axis: (2,), the unit vector (cos phi, sin phi) at which the half circle is folded.
        line: (m,), what is read out: cos(theta - phi), the points on the next line.
    """

    lifted: Tensor
    circle: Tensor
    axis: Tensor
    line: Tensor


def steps(net: nn.Sequential, points: Tensor) -> list[Step]:
    """How a network of `classifier` moves the points, one `Step` for each LN layer, read from its weights."""
    found, h = [], points.double()
    with torch.no_grad():
        for k in range(0, len(net) - 1, 2):
            lifted = net[k](h)
            h = net[k + 1](lifted)
            reads = net[k + 2].get_parameter("weight") @ PLANE  # of rank one: every output reads the same direction
            axis = reads[reads.norm(dim=1).argmax()]
            axis = axis / axis.norm() * axis[1].sign()  # phi lies in (0, pi)
            on_circle = h @ PLANE / math.sqrt(3)
            found.append(Step(lifted @ PLANE, on_circle, axis, on_circle @ axis))
    return found


def _build(points: Tensor, labels: Tensor, classes: int, rng: torch.Generator) -> nn.Sequential | None:
    """One attempt; every value is computed by the layers themselves, so that it has their rounding errors.

    None where nothing is left to merge and rounding has mixed the classes.
    """
    layers, h, present = [], points, len(labels.unique())
    w, b = _first_line(points, labels, rng)  # the read-out t = h w + b
    cluster = points.unique(dim=0, return_inverse=True)[1]  # points that coincide, by construction
    error = torch.ones_like(points[:, 0])  # of each t, to first order, in units of rounding
    while _separation(t := h @ w + b, labels)[0] > present:
        if len(cluster.unique()) == present:
            return None
        lift, shift, phi, merged, error = _best_fold(t, labels, cluster, error, rng)
        cluster = torch.where(cluster == merged[1], merged[0], cluster)
        up = torch.stack([lift * w, torch.zeros_like(w)])  # t -> (lift t + shift, 1)
        layers += [
            _linear(PLANE @ up, PLANE @ torch.stack([lift * b + shift, torch.ones_like(b)])),
            GroupedLayerNorm(3, 1, affine=False, eps=0.0),
        ]
        h = layers[-1](layers[-2](h))
        w, b = _rescaled(h, PLANE @ torch.stack([phi.cos(), phi.sin()]) / math.sqrt(3))
    return nn.Sequential(*layers, _read_intervals(t, labels, classes, w, b))


def _first_line(points: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(w, b), the projection of the points on a line, among random ones, with the widest gap between classes."""
    spread = points.std(0, correction=0)
    scale = torch.where(spread > 0, spread, 1)
    directions = torch.randn(points.shape[1], DIRECTIONS, generator=rng, dtype=torch.float64) / scale[:, None]
    return _rescaled(points, directions[:, _separation((points - points.mean(0)) @ directions, labels)[1].argmax()])


def _rescaled(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(w, b) so that h w + b runs from -1 to 1."""
    t = h @ w
    half = (t.max() - t.min()) / 2
    return w / half, -(t.max() + t.min()) / 2 / half


def _best_fold(t: Tensor, labels: Tensor, cluster: Tensor, error: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    """A fold, among random ones, that merges two clusters of a class: (a, b, phi, the two clusters, new errors).

    Folding stretches the line, and rounding errors with it: by 2 in every layer would be by 10^15 in fifty. So a fold
    is judged by the square of the gap that it leaves between classes over the errors that it makes.
    """
    pairs = torch.combinations(torch.from_numpy(np.unique(cluster, return_index=True)[1]))
    pairs = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
    pairs = pairs[torch.randint(len(pairs), (FOLDS,), generator=rng)]
    # The ends of the line go to two random angles; both coordinates of the lift follow from that.
    ends = torch.pi * (0.02 + 0.96 * torch.rand(FOLDS, 2, generator=rng, dtype=torch.float64)).sort(dim=1).values
    cot = 1 / ends.tan()
    lift, shift = (cot[:, 0] - cot[:, 1]) / 2, (cot[:, 0] + cot[:, 1]) / 2
    theta = torch.atan2(torch.ones((), dtype=t.dtype), t[:, None] * lift + shift)  # (m, FOLDS)
    phi = theta.gather(0, pairs.T).mean(0)
    folded = (theta - phi).cos()
    stretch = lift * theta.sin().square() * (theta - phi).sin().abs()  # |dt'/dt|
    errors = 2 * (stretch * error[:, None] + 1) / (folded.amax(0) - folded.amin(0))  # on a line from -1 to 1
    runs, gap = _separation(folded, labels)
    score = gap.square() / errors.square().mean(0).sqrt()
    best = torch.where(score >= score.max() / 2, runs, len(t) + 1).argmin()  # few runs now are few layers later
    return lift[best], shift[best], phi[best], cluster[pairs[best]], errors[:, best]


def _separation(t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How well each line t (m, ...) keeps the classes apart: (runs, gap).

    runs: stretches of one label; as many as classes, and a linear map can read them. gap: the least distance of two
    points with different labels, which are neighbours then, as a share of the line's length.
    """
    ordered, at = t.sort(dim=0)
    differ = labels[at].diff(dim=0) != 0
    gap = torch.where(differ, ordered.diff(dim=0), torch.inf).amin(0) / (ordered[-1] - ordered[0])
    return differ.sum(0) + 1, gap


def _read_intervals(t: Tensor, labels: Tensor, classes: int, w: Tensor, b: Tensor) -> nn.Linear:
    """Logits from a line on which every class has an interval of its own: the upper envelope of lines.

    In the order of the intervals, class r has the logit r t - tau_1 - ... - tau_r, which overtakes that of class r - 1
    at tau_r, halfway between their intervals. Classes without a point stay one below the smallest winning logit.
    """
    present = labels.unique()
    low, high = (torch.stack([f(t[labels == c]) for c in present]) for f in (torch.amin, torch.amax))
    order = low.argsort()
    tau = torch.cat([t.new_zeros(1), (high[order][:-1] + low[order][1:]) / 2])
    slope, offset = t.new_zeros(classes), t.new_full((classes,), -torch.inf)
    slope[present[order]] = torch.arange(len(present), dtype=t.dtype)
    offset[present[order]] = -tau.cumsum(0)
    lowest = (t[:, None] * slope + offset).amax(1).min() - 1
    offset = torch.where(offset.isfinite(), offset, lowest)
    return _linear(slope[:, None] * w, slope * b + offset)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.contiguous())
    return layer


def _checked(points: Tensor, labels: Tensor, classes: int | None) -> tuple[Tensor, Tensor, int]:
    """Refuse what cannot be classified; points in float64, labels, the number of classes."""
    if points.dim() != 2 or not points.is_floating_point() or 0 in points.shape or not points.isfinite().all():
        raise ValueError(
            f"points must be a finite float matrix (m, n), not empty; got {tuple(points.shape)}, "
            f"{points.dtype}, {int((~points.isfinite()).sum())} entries not finite"
        )
    if labels.shape != points.shape[:1] or labels.dtype != torch.int64 or labels.min() < 0:
        raise ValueError(
            f"labels must be int64, 0 or more, one for each of the {len(points)} points; got "
            f"{tuple(labels.shape)}, {labels.dtype}"
        )
    classes = int(labels.max()) + 1 if classes is None else classes
    if labels.max() >= classes:
        raise ValueError(f"labels go up to {int(labels.max())}, but classes={classes}")
    points = points.double()
    same = points.unique(dim=0, return_inverse=True)[1]
    clash = (same[:, None] == same) & (labels[:, None] != labels)
    if clash.any():
        i, j = clash.nonzero()[0].tolist()
        raise ValueError(
            f"points {i} and {j} are equal but have the labels {int(labels[i])} and {int(labels[j])}: no "
            "function can give one point two labels"
        )
    return points, labels, classes


def _closest(points: Tensor, labels: Tensor) -> tuple[int, int]:
    """The pair of points with different labels that lie closest together."""
    distance = torch.cdist(points, points).masked_fill(labels[:, None] == labels, torch.inf)
    return divmod(int(distance.argmin()), len(points))

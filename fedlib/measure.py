"""What we look at: accuracy class by class, the geometry of features, what a step costs.

g(x) is the feature of a sample (model.body), w_c the classifier of class c (row c of model.head.weight). Models are
measured in evaluation mode and left in the mode they were in. Images come prepared (`data.prepare`): float, on the
model's device. Results have no unit unless one is given.

Source of the quantities: Zhang et al., arXiv 2308.09565, section 4 and figures 2 and 3; of SSR, LSSR and the Hessian
nonlinearity: Ni et al., arXiv 2406.01255. Memory, operations and linear probes are those of chapter 5.
"""

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlib import accelerator

__all__ = [
    "Memory",
    "accuracy",
    "class_weight_norms",
    "effective_rank",
    "feature_norms",
    "features",
    "features_by_depth",
    "hessian_nonlinearity",
    "linear_probe",
    "ln_nonlinearity",
    "lssr",
    "margins",
    "nonlinearity_ratio",
    "per_class_accuracy",
    "singular_values",
    "training_flops",
    "training_memory",
]

BATCH = 256  # a few hundred images fit the caches of a CPU


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """g(x) of every sample: x (N, C, H, W), float -> (N, d), of the model's dtype, without gradient."""
    return _in_batches(model, model.get_submodule("body"), x)


def feature_norms(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """||g(x)|| of every sample, (N,); sqrt(d) for all of them under a scale or mean-variance norm (figure 3, left)."""
    return features(model, x).norm(dim=1)


def class_weight_norms(model: nn.Module) -> torch.Tensor:
    """||w_c|| of every class, (classes,) (figure 3, left)."""
    return model.get_parameter("head.weight").detach().norm(dim=1)


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of the samples that the model gets right, in [0, 1]. x (N, C, H, W) float, y (N,) int64."""
    logits = _in_batches(model, model, x)
    _check_labels(x, y, logits.shape[1])
    return (logits.argmax(1) == y).double().mean().item()


def per_class_accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Share of each class's samples that the model gets right, in [0, 1] (figure 2 has it in per cent).

    x (N, C, H, W) float, y (N,) int64 in [0, num_classes) -> (num_classes,) float64; nan for a class without samples.
    """
    _check_labels(x, y, num_classes)
    right = _in_batches(model, model, x).argmax(1) == y
    return torch.bincount(y[right], minlength=num_classes).double() / torch.bincount(y, minlength=num_classes)


def margins(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How far each sample's own class leads: m = w_y'g - max over c != y of w_c'g (plus biases), (N,).

    Positive where the sample is classified rightly. The cross-entropy lies between log(1 + exp(-m)) and
    log(1 + (C - 1) exp(-m)), so a loss near 0 needs a large m. Without biases m <= ||g|| max ||w_y - w_c||, which says
    what must grow for it: theorem 1. With features of a fixed length only the classifier can.

    x (N, C, H, W) float, y (N,) int64.
    """
    logits = _in_batches(model, model, x)
    _check_labels(x, y, logits.shape[1])
    own = logits.gather(1, y[:, None])
    return (own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)


def singular_values(features: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """sigma_1 >= sigma_2 >= ... of the feature matrix (N, d), not centred: (min(N, d),) float64.

    `normalise` divides by sigma_1, as in figure 3, right: collapsed features have a steep spectrum. Features that
    are all zero give zeros.

    Raises:
        ValueError: `features` is not a finite matrix.
    """
    if features.dim() != 2 or not features.isfinite().all():
        raise ValueError(
            f"features must be a finite (N, d) matrix; got shape {tuple(features.shape)}, "
            f"{int((~features.isfinite()).sum())} entries not finite."
        )
    values = torch.linalg.svdvals(features.double())
    return values / values[0] if normalise and values[0] > 0 else values


def effective_rank(features: torch.Tensor) -> float:
    """How many directions the features (N, d) really use: exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j.

    Between 1 (all on one line) and min(N, d) (all singular values equal); 0 for features that are all zero.
    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 1. Refuses what `singular_values` does.
    """
    values = singular_values(features)
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total > 0 else 0.0


def lssr(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear SSR: the smallest sum-of-squares ratio (SSR) that any linear map of the points can reach, in [0, 1].

        SSR = sum_c SS(X_c) / SS(X),  SS(X) = sum_i ||x_i - mean||^2

    is the share of the points' scatter that lies within the classes. 0: every class is one point. 1: all classes have
    the same mean.

    With S_W the scatter within the classes and S_T the whole scatter, both (d, d), it is the smallest generalised
    eigenvalue of S_W v = lambda S_T v, over the directions in which the points differ. No linear network gets its
    features below it. Computed as sigma_min^2 of the within-class deviations of the whitened points: with the singular
    value decomposition X = U S V', the whitened points are U.

    Source: arXiv 2406.01255 (the infimum, for two classes); Fisher's discriminant (the closed form):
    1 / (1 + lambda_max(S_W^-1 S_B)).

    Args:
        x: (m, d) float, the points.
        y: (m,) int64, their classes.

    Raises:
        ValueError: other shapes or dtypes, points that are not finite, or points that are all equal.
    """
    x, _ = _scatter(x, y)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    _, within = _scatter(u[:, s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps], y)
    return torch.linalg.svdvals(within)[-1].square().clamp(max=1).item()


def _scatter(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Deviations of the points from their mean, and from the mean of their class: (m, d) each, float64."""
    if x.dim() != 2 or not x.is_floating_point() or not x.isfinite().all():
        raise ValueError(
            f"x must be a finite float matrix (m, d); got {tuple(x.shape)}, {x.dtype}, "
            f"{int((~x.isfinite()).sum())} entries not finite."
        )
    _check_labels(x, y, max(int(y.max()) + 1 if y.numel() else 0, 1))
    x = x.double()
    total, within = x - x.mean(0), x.clone()
    if not total.any():
        raise ValueError(f"x must hold two different points at least; got {len(x)} equal ones.")
    for c in y.unique():
        within[y == c] -= x[y == c].mean(0)
    return total, within


def hessian_nonlinearity(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """H(f; x) = sum_i ||Hessian of f_i at x||_F^2, the outputs i of f together: 0 where f is affine.

    f: (d,) -> (n,), twice differentiable at x; x (d,) float. By automatic differentiation, d times the cost of a
    Jacobian. Source: arXiv 2406.01255, its measure of nonlinearity.
    """
    return torch.func.hessian(f)(x).square().sum().item()


def ln_nonlinearity(x: torch.Tensor, groups: int = 1) -> float:
    """H of LN-G with g groups at x (d,), without gamma, beta and eps, in closed form; one group is LN.

        H = sum_k 3 (c - 2) / (c sigma_k^4),  c = d / g

    sigma_k is the population standard deviation of group k. Groups of two have H = 0: they are signs. Source: arXiv
    2406.01255 has the measure; derived in chapter 6.

    Raises:
        ValueError: groups that do not divide d or are constant.
    """
    if x.dim() != 1 or groups < 1 or len(x) % groups or len(x) // groups < 2:
        raise ValueError(
            f"groups must divide the entries of x (d,) into two or more each; got {groups} for {tuple(x.shape)}."
        )
    parts = x.reshape(groups, -1)
    c, variance = parts.shape[1], parts.var(1, correction=0)
    if not (variance > 0).all():
        raise ValueError("x must vary inside every group: a constant one has no direction to normalise.")
    return (3 * (c - 2) / c * variance**-2).sum().item()


def nonlinearity_ratio(d: int, groups: int) -> float:
    """H(LN-G) / H(LN) when all g groups have the same variance and mean: g (1 - 2g/d) d / (d - 2).

    At any other x the ratio is at least this. Largest at g = d/4, groups of four, where it is at least d/8; 0 at
    g = d/2. Source: arXiv 2406.01255 for g <= d/3 and g = d/4.

    Raises:
        ValueError: d < 3, or g does not divide d.
    """
    if d < 3 or groups < 1 or d % groups:
        raise ValueError(f"groups must divide d, and d be 3 or more; got groups={groups}, d={d}.")
    return groups * (1 - 2 * groups / d) * d / (d - 2)


@dataclass(frozen=True)
class Memory:
    """What one training step holds in memory, in bytes.

    Attributes:
        parameters: of the parameters that are there.
        gradients: of the parameters that learn; plain SGD keeps nothing else.
        saved: activations kept from the forward for the backward pass.
        peak: the most that is alive at one moment: parameters, activations, gradients and intermediate results. The
            batch itself does not count.
    """

    parameters: int
    gradients: int
    saved: int
    peak: int


def training_memory(net: nn.Module, objective: Callable, x: torch.Tensor, absent: Collection[str] = ()) -> Memory:
    """Measure one training step of `objective(net, x, None, None)` on the batch x, on its device.

    On a GPU `peak` is the allocator's; on a CPU every storage that an operation returns is followed from its creation
    to its release (what an operation needs only while it runs is not seen). `saved` comes from autograd's hooks for
    saved tensors, each storage counted once and parameters left out. Parameters that do not learn are those with
    `requires_grad` False; those named in `absent` are not there at all. The module is left as it was, with no
    gradients.

    Raises:
        ValueError: nothing learns.
    """
    present, learning = [p for name, p in net.named_parameters() if name not in absent], _learning(net, absent)
    own = {p.untyped_storage()._cdata for p in net.parameters()} | {x.untyped_storage()._cdata}
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = objective(net, x, None, None)
        saved.append(sum(kept.values()))
        torch.autograd.grad(loss, learning, allow_unused=True)

    saved: list[int] = []
    sizes = [sum(p.numel() * p.element_size() for p in some) for some in (present, learning)]
    if accelerator.on(x):
        with accelerator.peak(x.device) as took:
            step()
        during = took[0]
    else:
        with _Living() as living:
            step()
        during = living.peak
    return Memory(sizes[0], sizes[1], saved[0], sizes[0] + during)


class _Living(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in given | self.known:
                storage = t.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def training_flops(net: nn.Module, objective: Callable, x: torch.Tensor) -> int:
    """Floating-point operations of one training step of `objective(net, x, None, None)`, as torch counts them.

    Matrix products and convolutions, forward and backward, a multiplication and an addition as two operations; layers
    that are cheap beside them (norms, activations) do not count. Works on the meta device, too.

    Raises:
        ValueError: nothing learns.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, because it brings triton, which takes half a second

    learning = _learning(net)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(objective(net, x, None, None), learning, allow_unused=True)
    return counter.get_total_flops()


def _learning(net: nn.Module, absent: Collection[str] = ()) -> list[nn.Parameter]:
    learning = [p for name, p in net.named_parameters() if p.requires_grad and name not in absent]
    if not learning:
        raise ValueError("net must have a parameter that learns (requires_grad), got none")
    return learning


def features_by_depth(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Features after each block of a model with a body of blocks (`models.BlockBody`): (N, C, H, W) -> (N, L, d)."""
    depths = cast(Callable[[torch.Tensor], torch.Tensor], model.get_submodule("body").depths)
    return _in_batches(model, depths, x)


def linear_probe(z: torch.Tensor, y: torch.Tensor, z_test: torch.Tensor, y_test: torch.Tensor) -> float:
    """Accuracy of a linear classifier on frozen features, in [0, 1]: what a representation makes easy to see.

    scikit-learn's logistic regression with its own regularisation (C = 1), on features standardised by the training
    set's mean and deviation. z (N, d), z_test (M, d) float; y (N,), y_test (M,) int64. Where there is a GPU, torch
    finds the minimum on it, since a dozen of these take minutes on one thread of a CPU.
    """
    if accelerator.there():
        return _probe(*(t.to(accelerator.KIND) for t in (z.double(), y, z_test.double(), y_test)))
    from sklearn.linear_model import LogisticRegression  # here, because importing it takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(z.cpu().numpy(), y.cpu().numpy()).score(z_test.cpu().numpy(), y_test.cpu().numpy()))


def _probe(z: torch.Tensor, y: torch.Tensor, z_test: torch.Tensor, y_test: torch.Tensor) -> float:
    """The same as scikit-learn's, where the tensors lie: the minimum is unique, so it does not matter who finds it."""
    mean, deviation = z.mean(0), z.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1)
    z, z_test = ((some - mean) / deviation for some in (z, z_test))
    classes, y = y.unique(return_inverse=True)
    W, b = z.new_zeros(len(classes), z.shape[1]), z.new_zeros(len(classes))
    # Of two classes scikit-learn has one vector, the difference of ours: its square is twice the sum of theirs.
    pull = (2 if len(classes) == 2 else 1) / (2 * len(z))
    search = torch.optim.LBFGS(
        [W.requires_grad_(), b.requires_grad_()], max_iter=1000, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        search.zero_grad()
        loss = nn.functional.cross_entropy(z @ W.T + b, y) + pull * W.square().sum()
        loss.backward()
        return loss

    search.step(objective)
    with torch.no_grad():
        return (classes[(z_test @ W.T + b).argmax(1)] == y_test).double().mean().item()


def _in_batches(model: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x), a batch at a time, in the model's dtype, with it in evaluation mode and without gradients."""
    if not x.is_floating_point() or len(x) == 0:
        raise ValueError(f"x must hold one float image at least (see data.prepare); got {tuple(x.shape)}, {x.dtype}.")
    x = x.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([function(batch) for batch in x.split(BATCH)])
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_labels(x: torch.Tensor, y: torch.Tensor, num_classes: int) -> None:
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"y must be int64 with one label for each of the {len(x)} samples; got {tuple(y.shape)}, {y.dtype}."
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(f"y must lie in [0, {num_classes}); got labels from {int(y.min())} to {int(y.max())}.")

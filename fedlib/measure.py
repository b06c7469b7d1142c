"""What we look at: accuracy class by class, the geometry of features, the size of the classifier.

g(x) is the feature of a sample (model.body), w_c the classifier of class c (row c of model.head.weight). Models are
measured in evaluation mode and left in the mode they were in. Images come prepared (`data.prepare`): float, on the
model's device. Results have no unit unless one is given.

Source of the quantities: Zhang et al., arXiv 2308.09565, section 4 and figures 2 and 3.
"""

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["class_weight_norms", "effective_rank", "feature_norms", "features", "margins", "per_class_accuracy",
           "singular_values"]

BATCH = 256  # a few hundred images fit the caches of a CPU


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """g(x) of every sample: x (N, C, H, W), float -> (N, d), of x's dtype, without gradient."""
    return _in_batches(model, model.body, x)


def feature_norms(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """||g(x)|| of every sample, (N,); sqrt(d) for all of them under a scale or mean-variance norm (figure 3, left)."""
    return features(model, x).norm(dim=1)


def class_weight_norms(model: nn.Module) -> torch.Tensor:
    """||w_c|| of every class, (classes,) (figure 3, left)."""
    return model.head.weight.detach().norm(dim=1)


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
    are all zero give zeros. Raises ValueError unless `features` is a finite matrix.
    """
    if features.dim() != 2 or not features.isfinite().all():
        raise ValueError(f"features must be a finite (N, d) matrix; got shape {tuple(features.shape)}, "
                         f"{int((~features.isfinite()).sum())} entries not finite.")
    values = torch.linalg.svdvals(features.double())
    return values / values[0] if normalise and values[0] > 0 else values


def effective_rank(features: torch.Tensor) -> float:
    """How many directions the features (N, d) really use: exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j.

    Between 1 (all on one line) and min(N, d) (all singular values equal); 0 for features that are all zero.
    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 1. Raises as `singular_values`.
    """
    values = singular_values(features)
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total > 0 else 0.0


def _in_batches(model: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x), a batch at a time, with the model in evaluation mode and without gradients."""
    if not x.is_floating_point() or len(x) == 0:
        raise ValueError(f"x must hold one float image at least (see data.prepare); got {tuple(x.shape)}, {x.dtype}.")
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
        raise ValueError(f"y must be int64 with one label for each of the {len(x)} samples; "
                         f"got {tuple(y.shape)}, {y.dtype}.")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(f"y must lie in [0, {num_classes}); got labels from {int(y.min())} to {int(y.max())}.")

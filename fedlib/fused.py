"""Plain SGD takes a dense layer's step inside its backward pass, and the gradient of its weights is never made.

Of y = x W' + b the gradient with respect to W is g'x, g being that of y, and a step is W <- (1 - lr wd) W - lr g'x: one
matrix product that adds to W in place. To make the gradient, read it again and subtract it takes two more passes over
memory of W's size, and these are most of what training a perceptron costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-9  # of a step in float64, by which a layer's own way of taking it may differ


@dataclass
class Rate:
    """Of the step that is being taken: learning rate and weight decay. A rate of None takes none.

    Attributes:
        stepped: weights that have taken it; a layer that was not used has not.
    """

    lr: float | None = None
    decay: float = 0.0
    stepped: set[Tensor] = field(default_factory=set)


class _Dense(torch.autograd.Function):
    """``F.linear`` whose backward pass takes the step of the weights; the gradient of the bias is made as ever."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rate: Rate) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rate, ctx.own = rate, weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (g,), rate = grads, ctx.rate
        below = g @ weight if ctx.needs_input_grad[0] else None  # with the weights that the forward pass used
        g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        weight.addmm_(g.T, x, beta=1 - rate.lr * rate.decay, alpha=-rate.lr)
        rate.stepped.add(ctx.own)
        return below, None, g.sum(dim=0) if ctx.needs_input_grad[2] else None, None


def arm(net: nn.Module, names: Collection[str], rate: Rate) -> frozenset[Tensor]:
    """From here on, the dense layers of these names step by themselves whenever ``rate`` has a learning rate.

    Returns:
        Their weights, for which nobody else must take a step.
    """
    layers = [_dense(net, name) for name in names]
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer, rate)
    return frozenset(layer.weight for layer in layers)


def _dense(net: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, net.get_submodule(name))


def _forward(layer: nn.Linear, rate: Rate, x: Tensor) -> Tensor:
    if rate.lr is None or not layer.weight.requires_grad:
        return F.linear(x, layer.weight, layer.bias)
    return _Dense.apply(x, layer.weight, layer.bias, rate)


def fitting(net: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> list[str]:
    """Names of the dense layers that can step by themselves: of a network that does the same then.

    Which is asked: a weight that is used twice, or that the loss looks at, gets another step, or an error.

    Args:
        loss: ``(net, x, y) -> scalar``, drawing no random numbers.
        x, y: a few examples, as the network takes them.
    """
    names = [name for name, module in net.named_modules() if type(module) is nn.Linear and module.weight.requires_grad]
    if not names:
        return []
    rate, net, x = Rate(0.1, 0.01), copy.deepcopy(net).double().train(), x.double() if x.is_floating_point() else x
    fused = copy.deepcopy(net)
    arm(fused, names, rate)
    weights = [[_dense(one, name).weight for name in names] for one in (net, fused)]
    before = [w.detach().clone() for w in weights[0]]
    try:
        gradients = torch.autograd.grad(loss(net, x, y), weights[0], allow_unused=True, materialize_grads=True)
        torch.autograd.grad(loss(fused, x, y), weights[1], allow_unused=True)
    except Exception:  # used twice; or whatever a caller's network or loss stumbles over, which training will tell
        return []
    with torch.no_grad():
        wanted = [(1 - 0.1 * 0.01) * w - 0.1 * g for w, g in zip(before, gradients, strict=True)]
        same = all((w - v).norm() <= TOLERANCE * v.norm() for w, v in zip(weights[1], wanted, strict=True))
    return names if same else []

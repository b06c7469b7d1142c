"""How methods differ: each algorithm says only what it changes.

An :class:`Algorithm` answers four questions: what a client minimises (``objective``), how its gradient becomes a step
(``direction``), what stays at home (``local``) and how the server moves (``server``). Whatever a method keeps between
rounds is declared (``client_memory``, ``server_memory``), so that it is checkpointed with the rest.

Shapes: R rows are the clients of a round, over all runs of a sweep; S runs have K clients each; P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlib.cohort import Layout, Local, Objective, Transformation
from fedlib.data import random_views
from fedlib.models import BlockBody
from fedlib.norms import ScaledWSConv2d, adaptive_clip, standardise_rows


@dataclass
class Reports:
    """What K clients of each run send, all of a round's or a wave of them.

    Attributes:
        w: (S, P), the vectors that they started from.
        deltas: (S, K, P), every client's change.
        p: (S, K), its weight in the average; those of a whole round sum to 1.
        share: (S, K), its share of the examples of all clients there are.
        sent: name -> (S, K, P), how its memory changed.
    """

    w: Tensor
    deltas: Tensor
    p: Tensor
    share: Tensor
    sent: dict[str, Tensor]


@dataclass
class Update:
    """What the server sees when a round ends: sums over its clients, never a single one.

    Attributes:
        delta: (S, P), the weighted mean of the clients' changes, sum_k p_k (w_k - w): the pseudo-gradient, negated.
        sums: name -> (S, ...), what the method's ``collect`` made of the clients' reports.
        memory: name -> (S, P), what the server keeps; changed in place.
        clients: N, the number of clients in the federation.
        round: t = 0, 1, ...
    """

    delta: Tensor
    sums: dict[str, Tensor]
    memory: dict[str, Tensor]
    clients: int
    round: int = 0


# --- objectives: what does a client minimise? ---


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Mean softmax cross-entropy of one client's batch; ``counts`` (C,) is what the client holds of each class."""
    return F.cross_entropy(net(x), y)


def contrastive(tau: float = 0.5) -> Objective:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, Eq. 1), of a batch in which every image stands twice in a row.

    With z the outputs of the 2B views at length 1 and s_ij = z_i'z_j / tau, view i must find its partner j among all
    others: the mean over i of -log(exp(s_ij) / sum_{m != i} exp(s_im)). Labels are not looked at.
    """
    _positive(tau=tau)

    def nt_xent(net: nn.Module, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        z = F.normalize(net(x), dim=1)
        views = torch.arange(len(z), device=z.device)
        s = (z @ z.T / tau).masked_fill(views[:, None] == views, -math.inf)
        return F.cross_entropy(s, views ^ 1)  # 0 <-> 1, 2 <-> 3, ...

    return nt_xent


# --- directions: how does a gradient become a step? Rows G, W (R, P) -> rows (R, P) ---


def clip(G: Tensor, W: Tensor, local: Local) -> Tensor:
    """Scale each row of G to a norm of at most ``local.clip``, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if local.clip is None:
        return G
    return G * (local.clip / (G.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)


def decay(G: Tensor, W: Tensor, local: Local) -> Tensor:
    """Add weight decay: G + wd * W."""
    return G if local.weight_decay is None else G + local.weight_decay * W


# --- servers: how does the server move? ---


def average(w: Tensor, update: Update) -> Tensor:
    """w <- sum_k p_k w_k, the weighted mean of the clients' vectors."""
    return w + update.delta


def nothing(net: nn.Module) -> set[str]:
    """Everything travels."""
    return set()


def only_the_mean(reports: Reports) -> dict[str, Tensor]:
    """No sums but the mean change, which every method has."""
    return {}


@dataclass(frozen=True)
class Algorithm:
    """A federated method, as the differences from FedAvg.

    Attributes:
        name: how the book calls it.
        settings: its own hyper-parameters; part of a checkpoint's identity.
        objective: ``(net, x, y, counts) -> scalar``, one client's loss on one batch.
        direction: row transformations ``(G, W, local) -> G``, applied in turn; the step is ``W -= lr * G``.
        remember: ``(W, local) -> {name: (R, P)}``, each client's new memory once its local steps are done.
        collect: ``reports -> {name: (S, ...)}``, the sums over clients that ``server`` needs beside the mean change;
            those of several waves are added up.
        server: ``(w, update) -> w``, both (S, P).
        client_memory: names of the rows that each client keeps between rounds, zero at first.
        server_memory: rows that the server keeps: name -> initial value; None starts as a copy of w.
        local: names of the parameters and buffers of a network that stay on the client.
        begin_round: ``(net, t)``, called on the network in training mode before round t = 0, 1, ... trains it; may put
            some of its modules into evaluation mode, freeze parameters (which then do not change by a bit and are not
            sent back) and choose the blocks that run. Must depend on t alone.
        absent: names of the parameters that a round, once begun, does without: they are not sent to the clients.
        view: ``(rng, shape) -> (*shape, 7)``, draws how images are distorted (:func:`fedlib.data.distort`); every image
            then stands twice in its batch, as two different views. None for images as they are.
        labels: False for a method that learns without labels: what its network gives are no logits, and the history
            has no accuracy.
        readout: ``(w, memory) -> w``, the vector that is evaluated, when it is not w itself.
        messages: vectors of the network's size that travel each way, for the count of bytes.
        max_norm: what ``local.clip`` is in a run that has no ``clip`` of its own; None for no clipping.
        mu: the proximal weight of a run that is given none; None for a method without a proximal term.
        annealing: the weight decay of round t is ``weight_decay * annealing**t``.
    """

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    objective: Objective = cross_entropy
    direction: tuple[Transformation, ...] = (clip, decay)
    remember: Callable[[Tensor, Local], dict[str, Tensor]] | None = None
    collect: Callable[[Reports], dict[str, Tensor]] = only_the_mean
    server: Callable[[Tensor, Update], Tensor] = average
    client_memory: tuple[str, ...] = ()
    server_memory: Mapping[str, float | None] = field(default_factory=dict)
    local: Callable[[nn.Module], set[str]] = nothing
    begin_round: Callable[[nn.Module, int], None] | None = None
    absent: Callable[[nn.Module], set[str]] = nothing
    view: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None
    labels: bool = True
    readout: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None
    messages: int = 1
    max_norm: float | None = None
    mu: float | None = None
    annealing: float = 1.0


def fedavg() -> Algorithm:
    """Local SGD, then the average weighted by sample counts (McMahan et al. 2017, Algorithm 1)."""
    return Algorithm("FedAvg")


def fedprox(mu: float = 0.01) -> Algorithm:
    """The gradient of + mu/2 ||w_k - w||^2 is added to each step (Li et al. 2020, Eq. 2).

    ``mu`` of ``fl.run`` and ``fl.sweep`` goes first, so that one sweep can hold several.
    """
    if not (math.isfinite(mu) and mu >= 0):
        raise ValueError(f"mu must be finite and not negative, got {mu!r}")

    def proximal(G: Tensor, W: Tensor, local: Local) -> Tensor:
        return G + (mu if local.mu is None else local.mu) * (W - local.w)

    return Algorithm("FedProx", {"mu": mu}, direction=(proximal, clip, decay), mu=mu)


def scaffold(weighted: bool = False) -> Algorithm:
    """Control variates, Option II (Karimireddy et al. 2020, Algorithm 1; line numbers are the paper's).

    The server's c is the mean of all clients' c_i or, if ``weighted``, their mean with the clients' shares of all
    examples as weights, as in FedNAR's code (arXiv 2310.03163). For clients of equal size the two are the same.
    """

    def correct(G: Tensor, W: Tensor, local: Local) -> Tensor:
        return G - local.client_rows["c"] + local.server["c"]  # line 10: g - c_i + c

    def remember(W: Tensor, local: Local) -> dict[str, Tensor]:
        moved = (local.w - W) / (local.steps * local.lr)
        return {"c": local.client_rows["c"] - local.server["c"] + moved}  # line 12 (ii)

    def collect(reports: Reports) -> dict[str, Tensor]:
        changes = reports.sent["c"]
        return {"c": torch.einsum("sk,skp->sp", reports.share, changes) if weighted else changes.sum(dim=1)}

    def server(w: Tensor, update: Update) -> Tensor:
        update.memory["c"] += update.sums["c"] / (1 if weighted else update.clients)  # line 17: |S|/N * mean of changes
        return w + update.delta

    settings = {"weighted": True} if weighted else {}
    return Algorithm(
        "SCAFFOLD",
        settings,
        direction=(correct, clip, decay),
        remember=remember,
        collect=collect,
        server=server,
        client_memory=("c",),
        server_memory={"c": 0.0},
        messages=2,
    )


def fedavgm(lr: float = 1.0, momentum: float = 0.9) -> Algorithm:
    """The server keeps momentum of the pseudo-gradient (Hsu et al. 2019, Section 4.3)."""
    _positive(lr=lr)
    _fraction(momentum=momentum)

    def server(w: Tensor, update: Update) -> Tensor:
        m = update.memory["m"].mul_(momentum).add_(update.delta)
        return w + lr * m

    return Algorithm("FedAvgM", {"lr": lr, "momentum": momentum}, server=server, server_memory={"m": 0.0})


def _adaptive(
    name: str, second_moment: Callable, lr: float, beta1: float, beta2: float, tau: float, v0: float | None
) -> Algorithm:
    """FedOpt (Reddi et al. 2021, Algorithm 2); ``second_moment(v, delta^2) -> v``. No bias correction, as there."""
    _positive(lr=lr, tau=tau)
    _fraction(beta1=beta1, beta2=beta2)

    def server(w: Tensor, update: Update) -> Tensor:
        m = update.memory["m"].mul_(beta1).add_(update.delta, alpha=1 - beta1)
        v = update.memory["v"] = second_moment(update.memory["v"], update.delta**2)
        return w + lr * m / (v.sqrt() + tau)

    settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau}
    return Algorithm(name, settings, server=server, server_memory={"m": 0.0, "v": tau**2 if v0 is None else v0})


def fedadam(
    lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, v0: float | None = None
) -> Algorithm:
    """Adam on the server: v <- beta2 v + (1 - beta2) delta^2 (Reddi et al. 2021, Algorithm 2; v0 = tau^2)."""
    return _adaptive("FedAdam", lambda v, d2: beta2 * v + (1 - beta2) * d2, lr, beta1, beta2, tau, v0)


def fedadam_eps(
    lr: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, eps: float = 0.01, eps_decay: float = 1.0
) -> Algorithm:
    """FedAdam in the form of FedNAR's code (arXiv 2310.03163): w + lr m' / sqrt(v' + eps_t), from m = v = 0.

    m <- beta1 m + (1 - beta1) delta and v <- beta2 v + (1 - beta2) delta^2 as in :func:`fedadam`, but then
    m' = m / (1 - beta1) and v' = v / (1 - beta2) in every round alike, eps stands inside the root, and it falls:
    eps_t = eps * eps_decay^t. The code has lr 0.1, eps 0.01 * 0.998^2 and eps_decay 0.998^2.

    Raises ValueError unless lr and eps are positive, beta1 and beta2 in [0, 1) and eps_decay in (0, 1].
    """
    _positive(lr=lr, eps=eps)
    _fraction(beta1=beta1, beta2=beta2)
    _annealing(eps_decay=eps_decay)
    if 1 in (beta1, beta2):
        raise ValueError(f"beta1 and beta2 must be below 1, got {beta1!r} and {beta2!r}")

    def server(w: Tensor, update: Update) -> Tensor:
        m = update.memory["m"].mul_(beta1).add_(update.delta, alpha=1 - beta1)
        v = update.memory["v"].mul_(beta2).add_(update.delta**2, alpha=1 - beta2)
        return w + lr * (m / (1 - beta1)) / (v / (1 - beta2) + eps * eps_decay**update.round).sqrt()

    settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "eps_decay": eps_decay}
    return Algorithm("FedAdam", settings, server=server, server_memory={"m": 0.0, "v": 0.0})


def fedyogi(
    lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, v0: float | None = None
) -> Algorithm:
    """Yogi on the server: v <- v - (1 - beta2) delta^2 sign(v - delta^2) (Reddi et al. 2021, Algorithm 2)."""
    return _adaptive("FedYogi", lambda v, d2: v - (1 - beta2) * d2 * torch.sign(v - d2), lr, beta1, beta2, tau, v0)


def fedexp(eps: float = 1e-3) -> Algorithm:
    """The server extrapolates by eta_g = max(1, sum_k p_k ||d_k||^2 / (2 (||d||^2 + eps))).

    Jhunjhunwala et al. 2023, Eq. 4, with the sample weights p_k in place of 1/M. What is evaluated is the mean of the
    last two iterates, as there (Section 3).
    """

    def collect(reports: Reports) -> dict[str, Tensor]:
        return {"spread": (reports.p * reports.deltas.square().sum(dim=2)).sum(dim=1, keepdim=True)}

    def server(w: Tensor, update: Update) -> Tensor:
        step = update.sums["spread"] / (2 * (update.delta.square().sum(dim=1, keepdim=True) + eps))
        update.memory["previous"] = w
        return w + step.clamp(min=1) * update.delta

    return Algorithm(
        "FedExP",
        {"eps": eps},
        collect=collect,
        server=server,
        server_memory={"previous": None},
        readout=lambda w, memory: (w + memory["previous"]) / 2,
    )


def fedlc(tau: float = 1.0) -> Algorithm:
    """Cross-entropy of calibrated logits f_c - tau * n_c^(-1/4) (Zhang et al. 2022, Eq. 5).

    A class that the client does not hold has an infinite margin and drops out. A one-class client then has loss 0 and
    gradient 0: it cannot learn at all.
    """
    _positive(tau=tau)

    def calibrated(net: nn.Module, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        return F.cross_entropy(net(x) - tau * counts**-0.25, y)

    return Algorithm("FedLC", {"tau": tau}, objective=calibrated)


def fedrs(alpha: float = 0.5) -> Algorithm:
    """Restricted softmax: the logits of classes that the client does not hold are scaled by alpha (Li & Zhan 2021)."""
    _fraction(alpha=alpha)

    def restricted(net: nn.Module, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        absent = (counts == 0).to(counts.dtype)
        return F.cross_entropy(net(x) * (1 - (1 - alpha) * absent), y)

    return Algorithm("FedRS", {"alpha": alpha}, objective=restricted)


def feddecorr(weight: float = 0.1) -> Algorithm:
    """Cross-entropy + weight * ||K||_F^2 / d^2, K (d, d) the correlations of a batch's features.

    Shi et al. 2023, Eq. 6. Needs a network with ``body`` and ``head``.
    """
    _positive(weight=weight)

    def decorrelated(net: nn.Module, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        z = net.body(x)
        centred = z - z.mean(dim=0)
        normed = centred / (centred.square().mean(dim=0) + 1e-8).sqrt()
        K = normed.T @ normed / len(z)
        return F.cross_entropy(net.head(z), y) + weight * K.square().mean()

    return Algorithm("FedDecorr", {"weight": weight}, objective=decorrelated)


def _batch_norms(net: nn.Module, method: str) -> dict[str, nn.Module]:
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not layers:
        raise ValueError(
            f"{method}() treats batch-norm layers apart, but this network has none; build it with norm='batch'"
        )
    return layers


def fedbn() -> Algorithm:
    """Batch-norm layers, their statistics included, stay on the client (Li et al. 2021, Algorithm 1)."""

    def batch_norms(net: nn.Module) -> set[str]:
        return {
            f"{layer}.{name}"
            for layer, m in _batch_norms(net, "fedbn").items()
            for name in (*dict(m.named_parameters()), *dict(m.named_buffers()))
        }

    return Algorithm("FedBN", local=batch_norms)


def fednar(base: Algorithm, max_norm: float = 10.0, annealing: float = 1.0) -> Algorithm:
    """Any algorithm with its weight decay inside the clip: v = g + wd w, then v <- v min(1, A / ||v||), row by row.

    g is the client's gradient with the base's own corrections, and the step w <- w - l_t v is at most A l_t long,
    whatever w. Where ||g + wd w|| <= A it is plain SGD with weight decay. The base alone clips g and adds wd w
    afterwards: ``fl.sweep(..., base, clip=[A])`` is the baseline that differs in nothing else.

    Args:
        base: the method to wrap, such as ``fedprox()``.
        max_norm: the radius A of the ball, for runs that are given none: ``clip`` of ``fl.run`` and ``fl.sweep`` goes
            first, so that one sweep can hold several radii (``clip=[math.inf]``: no ball at all).
        annealing: in (0, 1]. The decay of round t is ``weight_decay * annealing**t``, on top of the learning rate's
            own ``lr_decay``, by which the length l_t wd ||w|| of the decay step falls in any case.

    Source: Li et al. 2023 (arXiv 2310.03163), in the form of its released code, which adds wd/2 ||w||^2 to the loss and
    clips its gradient at 10; the code anneals by the learning rate only.

    Raises:
        TypeError: ``base`` is no Algorithm (``fedavg`` instead of ``fedavg()``, say).
        ValueError: a radius that is not positive, an annealing outside (0, 1], or a base that is wrapped already.
    """
    _check_base(base)
    _positive(max_norm=max_norm)
    _annealing(annealing=annealing)
    if base.direction[-2:] == (decay, clip):
        raise ValueError(
            f"base must not have its weight decay inside the clip already, got {base.name!r}: wrapping "
            "FedNAR twice would change nothing but its radius; give the other max_norm to the inner one"
        )
    corrections = tuple(step for step in base.direction if step not in (clip, decay))
    return replace(
        base,
        name=f"{base.name} + NAR",
        direction=(*corrections, decay, clip),
        max_norm=max_norm,
        annealing=annealing,
        settings={**base.settings, "max_norm": max_norm, "annealing": annealing},
    )


def silobn() -> Algorithm:
    """Batch-norm statistics stay on the client; scale and shift are shared (Andreux et al. 2020, Section 2.3)."""

    def statistics(net: nn.Module) -> set[str]:
        return {
            f"{layer}.{name}" for layer, m in _batch_norms(net, "silobn").items() for name in dict(m.named_buffers())
        }

    return Algorithm("SiloBN", local=statistics)


def fixbn(after: int) -> Algorithm:
    """After ``after`` rounds of FedAvg, batch norm uses the global statistics of then, in training too.

    Scale and shift go on learning (Zhong et al. 2023, Section 4).
    """
    if not isinstance(after, int) or after < 1:
        raise ValueError(f"after must be a whole number of rounds, at least 1, got {after!r}")

    def freeze(net: nn.Module, t: int) -> None:
        for layer in _batch_norms(net, "fixbn").values():
            layer.train(t < after)

    return Algorithm("FixBN", {"after": after}, begin_round=freeze)


def standalone() -> Algorithm:
    """Nothing travels: every client trains its own network on its own data."""

    def everything(net: nn.Module) -> set[str]:
        return {*dict(net.named_parameters()), *dict(net.named_buffers())}

    return Algorithm("Standalone", local=everything)


def fedwon(agc: float | None = None, standardised: nn.Module | None = None) -> Algorithm:
    """FedAvg, for a network without normalisation whose convolutions are :class:`fedlib.norms.ScaledWSConv2d`.

    Zhuang and Lyu 2024, Section 3.3. ``agc`` adds adaptive gradient clipping; the paper uses 0.1 at batches of 32.
    The text leaves open whether raw or standardised weights are averaged. Here it is the raw ones, unless a network
    like the trained one is given as ``standardised``.
    """
    method = Algorithm("FedWon")
    if agc is not None:
        _positive(agc=agc)

        def clip_units(G: Tensor, W: Tensor, local: Local) -> Tensor:
            return adaptive_clip(G, W, local.units, agc)

        method = replace(method, settings={"agc": agc}, direction=(clip_units, *method.direction))
    if standardised is not None:
        layout = Layout(standardised)
        convs = {f"{name}.weight": m for name, m in standardised.named_modules() if isinstance(m, ScaledWSConv2d)}

        def collect(reports: Reports) -> dict[str, Tensor]:
            W = reports.w[:, None] + reports.deltas
            for name, weight in zip(layout.parameters, layout.views(W), strict=True):
                if name in convs:
                    weight.copy_(standardise_rows(weight, convs[name].gamma, convs[name].eps))
            return {"standardised": torch.einsum("sk,skp->sp", reports.p, W)}

        method = replace(
            method,
            settings={**method.settings, "standardised": 1.0},
            collect=collect,
            server=lambda w, update: update.sums["standardised"],
        )
    return method


def simclr(tau: float = 0.5, smallest: float = 0.2, colour: float = 0.4) -> Algorithm:
    """FedAvg without labels: each client learns to tell its own images apart (:func:`contrastive`).

    A view is compared with the others of its client's batch only, which must hold two images at least. ``smallest`` and
    ``colour`` say how different two views are: :func:`fedlib.data.random_views`.
    """
    _positive(smallest=smallest)
    _fraction(smallest=smallest, colour=colour)
    return Algorithm(
        "SimCLR",
        {"tau": tau, "smallest": smallest, "colour": colour},
        objective=contrastive(tau),
        view=partial(random_views, smallest=smallest, colour=colour),
        labels=False,
    )


def phases(depth: int, active: int = 1, progressive: bool = False) -> list[list[int]]:
    """The blocks that learn in each phase, from the shallowest to the deepest, ``active`` new ones in every phase.

    ``progressive``: all blocks so far learn together, as in ProgFed (Wang et al. 2022). ``active=depth`` is one phase:
    training end to end. Raises ValueError unless ``active`` divides ``depth``.
    """
    if active < 1 or depth % active:
        raise ValueError(f"active must divide the depth {depth}, got {active}")
    return [list(range(1 if progressive else end - active + 1, end + 1)) for end in range(active, depth + 1, active)]


def layerwise(
    base: Algorithm, plan: Sequence[Sequence[int]], rounds: int, budget: int | None = None, seed: int = 0
) -> Algorithm:
    """Train a deep network a few blocks at a time, with depth dropout if there is a budget.

    In phase s = 1, 2, ... of ``rounds`` rounds each, the blocks ``plan[s - 1]`` learn. Those that learned before are
    frozen: they only run forward, are sent to the clients and not sent back. Those above do not exist yet: the head
    stands on the newest block. The patches learn with block 1, the head in every phase.

    Depth dropout: where more than ``budget`` blocks B would be in memory, older ones are left out at random until B
    remain; drawn anew for every round, the same for all its clients. Block 1 and the newest never are. A block left out
    is neither run nor sent; after training all are back. With a plan of one phase, which has no older blocks, any but
    block 1 may be left out: depth dropout alone.

    Source: Guo et al. 2023 (arXiv 2309.05213), which leaves open how often blocks are drawn, what becomes of the head
    from phase to phase (here it is kept), and all of SimCLR's settings.

    Args:
        base: what a phase trains with, such as ``simclr()``.
        plan: see :func:`phases`.
        rounds: of each phase; the last goes on for as long as the run does.
        budget: B, between 2 and the depth; None for no dropout.
        seed: of the dropout.

    Raises:
        TypeError: ``base`` is no Algorithm (``simclr`` instead of ``simclr()``, say).
        ValueError: a plan that skips a block or trains one before those below it, rounds below 1, a budget below 2,
            above the depth, or too small for block 1 and the newest blocks, a seed below 0, or a base that prepares
            its rounds itself, such as one that is wrapped already.
    """
    _check_base(base)
    if base.begin_round:
        raise ValueError(f"base must not prepare its rounds itself, got {base.name!r}: layerwise would replace that")
    plan = [sorted(set(active)) for active in plan]
    new = _new_blocks(plan)
    depth = max(new[-1])
    droppable = [range(2, min(blocks)) for blocks in new] if len(plan) > 1 else [range(2, depth + 1)]
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise ValueError(f"rounds must be a whole number of at least 1, got {rounds!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    if budget is not None:
        least = max(2, *(max(active) - len(older) for active, older in zip(plan, droppable, strict=True)))
        if not isinstance(budget, int) or not least <= budget <= depth:
            raise ValueError(
                f"budget must be a number of blocks from {least} (block 1 and the newest always run) "
                f"to the depth {depth}, got {budget!r}"
            )

    def begin_round(net: nn.Module, t: int) -> None:
        s = min(t // rounds, len(plan) - 1)
        present = max(plan[s])
        over = 0 if budget is None else max(0, present - budget)
        dropped = np.random.default_rng([seed, t]).choice(droppable[s], over, replace=False) if over else ()
        body = _block_body(net, depth)
        body.running = tuple(b for b in range(1, present + 1) if b not in dropped)
        body.grown = present  # also where the newest blocks are left out
        body.patches.requires_grad_(1 in plan[s])
        for number, block in enumerate(body.blocks, start=1):
            block.requires_grad_(number in plan[s] and number in body.running)

    def absent(net: nn.Module) -> set[str]:
        body = _block_body(net, depth)
        return {
            f"body.blocks.{i}.{name}"
            for i, block in enumerate(body.blocks)
            if i + 1 not in body.running
            for name, _ in block.named_parameters()
        }

    settings = {
        "plan": " | ".join(" ".join(map(str, active)) for active in plan),
        "rounds": rounds,
        "budget": budget,
        "dropout_seed": seed if budget else None,
    }
    return replace(
        base,
        name=f"{base.name}, layer-wise",
        settings={**base.settings, **settings},
        begin_round=begin_round,
        absent=absent,
    )


def _new_blocks(plan: Sequence[Sequence[int]]) -> list[list[int]]:
    """The blocks that each phase adds; ValueError unless every phase adds the next ones."""
    known, new = 0, []
    for s, active in enumerate(plan, start=1):
        fresh = [b for b in active if b > known]
        if fresh != list(range(known + 1, known + len(fresh) + 1)) or not fresh or min(active) < 1:
            raise ValueError(f"plan must go on with block {known + 1} in phase {s} and skip none, got {list(active)}")
        new.append(fresh)
        known += len(fresh)
    if not new:
        raise ValueError("plan must have at least one phase, got none")
    return new


def _block_body(net: nn.Module, depth: int) -> BlockBody:
    body = getattr(net, "body", None)
    if not isinstance(body, BlockBody) or len(body.blocks) != depth:
        there = len(body.blocks) if isinstance(body, BlockBody) else "no"
        raise ValueError(
            f"the plan is for {depth} blocks, but the network has {there} blocks in a BlockBody; build it "
            f"with vit_encoder(..., depth={depth})"
        )
    return body


def _check_base(base: Algorithm) -> None:
    if not isinstance(base, Algorithm):
        raise TypeError(f"base must be an Algorithm, such as fedavg(); got {base!r}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def _fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}")


def _annealing(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {value!r}")


ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    f.__name__: f
    for f in (
        fedavg,
        fedprox,
        scaffold,
        fedavgm,
        fedadam,
        fedadam_eps,
        fedyogi,
        fedexp,
        fedlc,
        fedrs,
        feddecorr,
        fedbn,
        silobn,
        fixbn,
        standalone,
        fedwon,
        simclr,
    )
}


def build(name: str, **settings: float) -> Algorithm:
    """The algorithm called ``name``, e.g. ``build("fedprox", mu=0.1)``.

    Raises:
        ValueError: if there is no such algorithm; the message lists those that exist.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; there are {', '.join(sorted(ALGORITHMS))}")
    return ALGORITHMS[name](**settings)

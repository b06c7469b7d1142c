"""How methods differ: each says only what it changes in FedAvg.

An :class:`Algorithm` answers five questions. What does a client minimise (``objective``)? How does a gradient become a
step (``correct``, ``step``)? What does a client remember (``keeps``)? What travels (``travels``)? How does the server
move (``server``)? Its numbers stand in ``settings`` alone: row transformations read them as ``local["mu"]``, objectives
as ``told["tau"]``, servers as ``update["beta1"]``, and a sweep can combine any of them.

Shapes: R rows are the clients of a round, over all runs of a sweep; S runs have K clients each; P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlib import checks
from fedlib.cohort import Layout, Local, Loss, Transformation, Travels
from fedlib.data import random_views
from fedlib.messages import Reports
from fedlib.norms import ScaledWSConv2d, adaptive_clip, standardise_rows


@dataclass
class Update:
    """What the server sees when a round ends: sums over its clients, never a single one. S runs with equal settings.

    Attributes:
        delta: (S, P), the weighted mean of the clients' changes, sum_k p_k (w_k - w): the pseudo-gradient, negated.
        sums: name -> (S, ...), what the method's ``collect`` made of the clients' reports.
        memory: name -> (S, P), what the server keeps; changed in place.
        clients: N, the number of clients in the federation.
        round: t = 0, 1, ...
        settings: the method's numbers; ``update["beta1"]`` is one.
        came: (S, 1), the share of the cohort's examples that came back: 1 unless a client was lost. ``delta`` is a mean
            over those already; a sum of p_k in ``sums`` becomes one when divided by it.
    """

    delta: Tensor
    sums: dict[str, Tensor]
    memory: dict[str, Tensor]
    clients: int
    round: int
    settings: Mapping[str, float]
    came: Tensor

    def __getitem__(self, name: str) -> float:
        return self.settings[name]


# --- objectives: what does a client minimise? ---


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor, told: Mapping[str, Any]) -> Tensor:
    """Mean softmax cross-entropy of one client's batch."""
    return F.cross_entropy(net(x), y)


def nt_xent(net: nn.Module, x: Tensor, y: Tensor, told: Mapping[str, Any]) -> Tensor:
    """The loss of SimCLR (Chen et al. 2020, Eq. 1), of a batch in which every image stands twice in a row.

    With z the outputs of the 2B views at length 1 and s_ij = z_i'z_j / tau, view i must find its partner j among all
    others: the mean over i of -log(exp(s_ij) / sum_{m != i} exp(s_im)). Labels are not looked at.
    """
    z = F.normalize(net(x), dim=1)
    views = torch.arange(len(z), device=z.device)
    s = (z @ z.T / told["tau"]).masked_fill(views[:, None] == views, -math.inf)
    return F.cross_entropy(s, views ^ 1)  # 0 <-> 1, 2 <-> 3, ...


@dataclass(frozen=True)
class Objective:
    """What a client minimises.

    Attributes:
        loss: ``(net, x, y, told) -> scalar``, a client's loss on a batch; ``told["counts"]`` (C,) is how many images
            of each class it holds, ``told[name]`` a number of the method.
        view: ``(rng, shape) -> (*shape, 7)``, draws how images are distorted (:func:`fedlib.data.distort`); every image
            then stands twice in its batch, as two different views. None for images as they are.
        labels: False for a method that learns without labels: what its network gives are no logits, and the history
            has no accuracy.
    """

    loss: Loss = cross_entropy
    view: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None
    labels: bool = True


# --- directions: how does a gradient become a step? Rows G, W (R, P) -> rows (R, P) ---


def clip(G: Tensor, W: Tensor, local: Local) -> Tensor:
    """Scale each row of G to a norm of at most ``clip``, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if "clip" not in local.numbers:
        return G
    return G * (local["clip"] / (G.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)


def decay(G: Tensor, W: Tensor, local: Local) -> Tensor:
    """Add weight decay: G + weight_decay * W."""
    return G + local["weight_decay"] * W if "weight_decay" in local.numbers else G


# --- servers: how does the server move? ---


def average(w: Tensor, update: Update) -> Tensor:
    """w <- sum_k p_k w_k, the weighted mean of the clients' vectors."""
    return w + update.delta


@dataclass(frozen=True)
class ServerOpt:
    """How the server moves (the ServerOpt of Reddi et al. 2021).

    Attributes:
        move: ``(w, update) -> w``, both (S, P).
        memory: rows that the server keeps: name -> initial value, or a function of the settings that gives it. None
            starts as a copy of w. Memory that clients keep under the same name is told to them.
        collect: ``reports -> {name: (S, ...)}``, the sums over clients that ``move`` needs beside the mean; those
            of several waves or machines are added up.
        shown: ``(w, memory) -> w``, the vector that is evaluated, when it is not w itself.
    """

    move: Callable[[Tensor, Update], Tensor] = average
    memory: Mapping[str, float | None | Callable[[Mapping], float]] = field(default_factory=dict)
    collect: Callable[[Reports], dict[str, Tensor]] = lambda reports: {}
    shown: Callable[[Tensor, dict[str, Tensor]], Tensor] = lambda w, memory: w


@dataclass(frozen=True)
class Algorithm:
    """A federated method, as the differences from FedAvg.

    Attributes:
        name: how the book calls it.
        settings: its hyper-parameters; part of a checkpoint's identity. Floats can differ between runs of a sweep,
            all else is the same for its cohort. ``clip`` is the radius of runs that are given none, and the weight
            decay of round t is ``weight_decay * annealing**t``, where it has these two.
        objective: what a client minimises.
        correct: row transformations ``(G, W, local) -> G``, applied in turn to the gradients G at the weights W.
        step: those that follow; the step is ``W -= lr * G``.
        keeps: what each client remembers between rounds, zero at first: name -> ``(W, local) -> (R, P)``, its new value
            once the local steps are done. Where the server has memory of that name, the change is sent to it.
        travels: ``(net, t) -> Travels``, what does not travel in round t = 0, 1, ...; called on the network in training
            mode, and may put some of its modules into evaluation mode, freeze parameters (which then do not change by a
            bit and are not sent back) and choose the blocks that run. Must depend on t alone. None: everything travels.
        server: how the server moves.
    """

    name: str
    settings: Mapping[str, float | int | str | None] = field(default_factory=dict)
    objective: Objective = Objective()
    correct: tuple[Transformation, ...] = ()
    step: tuple[Transformation, ...] = (clip, decay)
    keeps: Mapping[str, Callable[[Tensor, Local], Tensor]] = field(default_factory=dict)
    travels: Callable[[nn.Module, int], Travels] | None = None
    server: ServerOpt = ServerOpt()

    def __post_init__(self):
        if not isinstance(self.objective, Objective):
            raise ValueError(f"objective must be an Objective(loss), got {self.objective!r}")
        if not isinstance(self.server, ServerOpt):
            raise ValueError(f"server must be a ServerOpt(move), got {self.server!r}")
        for name, value in self.settings.items():
            check_setting(name, value)

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of what both a client and the server keep: it travels, the server's down and the client's change up."""
        return tuple(name for name in self.keeps if name in self.server.memory)

    @property
    def numbers(self) -> dict[str, float]:
        """The settings that can differ between the runs of a sweep."""
        return {"annealing": 1.0} | {name: v for name, v in self.settings.items() if isinstance(v, float)}

    def loss(self, net: nn.Module, x: Tensor, y: Any = None, counts: Any = None) -> Tensor:
        """What a client that holds ``counts`` (C,) images of each class minimises on one batch."""
        return self.objective.loss(net, x, y, {"counts": counts, **self.numbers})

    def direction(self, G: Tensor, W: Tensor, local: Local) -> Tensor:
        """What a step follows: gradients G (R, P) at weights W (R, P), corrected, clipped and decayed."""
        for transform in (*self.correct, *self.step):
            G = transform(G, W, local)
        return G


def fedavg() -> Algorithm:
    """Local SGD, then the average weighted by sample counts (McMahan et al. 2017, Algorithm 1)."""
    return Algorithm("FedAvg")


def fedprox(mu: float = 0.01) -> Algorithm:
    """The gradient of + mu/2 ||w_k - w||^2 is added to each step (Li et al. 2020, Eq. 2)."""

    def proximal(G: Tensor, W: Tensor, local: Local) -> Tensor:
        return G + local["mu"] * (W - local.w)

    return Algorithm("FedProx", {"mu": float(mu)}, correct=(proximal,))


def scaffold(weighted: bool = False) -> Algorithm:
    """Control variates, Option II (Karimireddy et al. 2020, Algorithm 1; line numbers are the paper's).

    The server's c is the mean of all clients' c_i or, if ``weighted``, their mean with the clients' shares of all
    examples as weights, as in FedNAR's code (arXiv 2310.03163). For clients of equal size the two are the same.
    """

    def correct(G: Tensor, W: Tensor, local: Local) -> Tensor:
        return G - local.client_rows["c"] + local.server["c"]  # line 10: g - c_i + c

    def remember(W: Tensor, local: Local) -> Tensor:
        moved = (local.w - W) / (local.steps * local["lr"])
        new = local.client_rows["c"] - local.server["c"] + moved  # line 12 (ii)
        # A rate that lr_decay has brought below what a float holds moves nothing, and 0 / 0 says nothing of gradients.
        return torch.where(local["lr"] > 0, new, local.client_rows["c"])

    def collect(reports: Reports) -> dict[str, Tensor]:
        changes = reports.sent["c"]
        return {"c": torch.einsum("sk,skp->sp", reports.share, changes) if weighted else changes.sum(dim=1)}

    def move(w: Tensor, update: Update) -> Tensor:
        update.memory["c"] += update.sums["c"] / (1 if weighted else update.clients)  # line 17: |S|/N * mean of changes
        return w + update.delta

    return Algorithm(
        "SCAFFOLD",
        {"weighted": True} if weighted else {},
        correct=(correct,),
        keeps={"c": remember},
        server=ServerOpt(move, {"c": 0.0}, collect),
    )


def feddyn(penalty: float = 0.01) -> Algorithm:
    """Dynamic regularisation (Acar et al. 2021, Algorithm 1): - <h_k, w_k> + alpha/2 ||w_k - w||^2 joins the loss.

    alpha is ``penalty`` here. Client k keeps h_k <- h_k - alpha (w_k - w), the server h = (1/N) sum_k h_k over all N
    clients, and w <- sum_k p_k w_k - h / alpha. The paper has the plain mean of the cohort in place of the sample
    weights p_k; h is unweighted, as there, and so a point where nothing moves is one of the unweighted mean of the
    clients' losses. alpha cancels in h / alpha: a small one is not FedAvg.
    """

    def dynamic(G: Tensor, W: Tensor, local: Local) -> Tensor:
        return G - local.client_rows["h_k"] + local["penalty"] * (W - local.w)

    def remember(W: Tensor, local: Local) -> Tensor:
        return local.client_rows["h_k"] - local["penalty"] * (W - local.w)

    def collect(reports: Reports) -> dict[str, Tensor]:
        return {"moved": reports.deltas.sum(dim=1)}

    def move(w: Tensor, update: Update) -> Tensor:
        update.memory["h"] -= update["penalty"] * update.sums["moved"] / update.clients
        return w + update.delta - update.memory["h"] / update["penalty"]

    # Two names, so that nothing travels beside w: the server works h out from the changes that it gets anyway.
    return Algorithm(
        "FedDyn",
        {"penalty": float(penalty)},
        correct=(dynamic,),
        keeps={"h_k": remember},
        server=ServerOpt(move, {"h": 0.0}, collect),
    )


def fedavgm(lr: float = 1.0, momentum: float = 0.9) -> Algorithm:
    """The server keeps momentum of the pseudo-gradient (Hsu et al. 2019, Section 4.3)."""

    def move(w: Tensor, update: Update) -> Tensor:
        m = update.memory["m"].mul_(update["momentum"]).add_(update.delta)
        return w + update["server_lr"] * m

    settings = {"server_lr": float(lr), "momentum": float(momentum)}
    return Algorithm("FedAvgM", settings, server=ServerOpt(move, {"m": 0.0}))


def _adaptive(
    name: str, second_moment: Callable, lr: float, beta1: float, beta2: float, tau: float, v0: float | None
) -> Algorithm:
    """FedOpt (Reddi et al. 2021, Algorithm 2), without bias correction; ``second_moment(v, delta^2, beta2) -> v``."""

    def move(w: Tensor, update: Update) -> Tensor:
        m = update.memory["m"].mul_(update["beta1"]).add_(update.delta, alpha=1 - update["beta1"])
        v = update.memory["v"] = second_moment(update.memory["v"], update.delta**2, update["beta2"])
        return w + update["server_lr"] * m / (v.sqrt() + update["tau"])

    settings = {"server_lr": float(lr), "beta1": float(beta1), "beta2": float(beta2), "tau": float(tau)}
    settings |= {} if v0 is None else {"v0": float(v0)}
    memory = {"m": 0.0, "v": lambda own: own.get("v0", own["tau"] ** 2)}
    return Algorithm(name, settings, server=ServerOpt(move, memory))


def fedadam(
    lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, v0: float | None = None
) -> Algorithm:
    """Adam on the server: v <- beta2 v + (1 - beta2) delta^2 (Reddi et al. 2021, Algorithm 2; v0 = tau^2)."""
    return _adaptive("FedAdam", lambda v, d2, beta2: beta2 * v + (1 - beta2) * d2, lr, beta1, beta2, tau, v0)


def fedadam_eps(
    lr: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, eps: float = 0.01, eps_decay: float = 1.0
) -> Algorithm:
    """FedAdam in the form of FedNAR's code (arXiv 2310.03163): w + lr m' / sqrt(v' + eps_t), from m = v = 0.

    m <- beta1 m + (1 - beta1) delta as in :func:`fedadam`. But v <- beta2 v + (1 - beta2) m^2: the code squares the
    momentum, not delta. Then m' = m / (1 - beta1) and v' = v / (1 - beta2) in every round alike, eps stands inside the
    root, and it falls: eps_t = eps * eps_decay^t. The code has lr 0.1, eps 0.01 * 0.998^2 and eps_decay 0.998^2.

    Raises ValueError unless lr and eps are positive, beta1 and beta2 in [0, 1) and eps_decay in (0, 1].
    """
    checks.positive(eps=eps)

    def move(w: Tensor, update: Update) -> Tensor:
        beta1, beta2 = update["beta1"], update["beta2"]
        m = update.memory["m"].mul_(beta1).add_(update.delta, alpha=1 - beta1)
        v = update.memory["v"].mul_(beta2).add_(m**2, alpha=1 - beta2)
        eps = update["eps_0"] * update["eps_decay"] ** update.round
        return w + update["server_lr"] * (m / (1 - beta1)) / (v / (1 - beta2) + eps).sqrt()

    settings = {"server_lr": lr, "beta1": beta1, "beta2": beta2, "eps_0": eps, "eps_decay": eps_decay}
    return Algorithm(
        "FedAdam", {n: float(v) for n, v in settings.items()}, server=ServerOpt(move, {"m": 0.0, "v": 0.0})
    )


def fedyogi(
    lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, v0: float | None = None
) -> Algorithm:
    """Yogi on the server: v <- v - (1 - beta2) delta^2 sign(v - delta^2) (Reddi et al. 2021, Algorithm 2)."""
    return _adaptive(
        "FedYogi", lambda v, d2, beta2: v - (1 - beta2) * d2 * torch.sign(v - d2), lr, beta1, beta2, tau, v0
    )


def fedexp(eps: float = 1e-3) -> Algorithm:
    """The server extrapolates by eta_g = max(1, sum_k p_k ||d_k||^2 / (2 (||d||^2 + eps))).

    Jhunjhunwala et al. 2023, Eq. 4, with the sample weights p_k in place of 1/M. What is evaluated is the mean of the
    last two iterates, as there (Section 3).
    """

    def collect(reports: Reports) -> dict[str, Tensor]:
        return {"spread": (reports.p * reports.deltas.square().sum(dim=2)).sum(dim=1, keepdim=True)}

    def move(w: Tensor, update: Update) -> Tensor:
        spread = update.sums["spread"] / update.came
        step = spread / (2 * (update.delta.square().sum(dim=1, keepdim=True) + update["eps"]))
        update.memory["previous"] = w
        return w + step.clamp(min=1) * update.delta

    def last_two(w: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return (w + memory["previous"]) / 2

    return Algorithm("FedExP", {"eps": float(eps)}, server=ServerOpt(move, {"previous": None}, collect, last_two))


def fedlc(tau: float = 1.0) -> Algorithm:
    """Cross-entropy of calibrated logits f_c - tau * n_c^(-1/4) (Zhang et al. 2022, Eq. 5).

    A class that the client does not hold has an infinite margin and drops out. A one-class client then has loss 0 and
    gradient 0: it cannot learn at all.
    """

    def calibrated(net: nn.Module, x: Tensor, y: Tensor, told: Mapping[str, Any]) -> Tensor:
        return F.cross_entropy(net(x) - told["tau"] * told["counts"] ** -0.25, y)

    return Algorithm("FedLC", {"tau": float(tau)}, Objective(calibrated))


def fedrs(alpha: float = 0.5) -> Algorithm:
    """Restricted softmax: the logits of classes that the client does not hold are scaled by alpha (Li & Zhan 2021)."""

    def restricted(net: nn.Module, x: Tensor, y: Tensor, told: Mapping[str, Any]) -> Tensor:
        absent = (told["counts"] == 0).to(told["counts"].dtype)
        return F.cross_entropy(net(x) * (1 - (1 - told["alpha"]) * absent), y)

    return Algorithm("FedRS", {"alpha": float(alpha)}, Objective(restricted))


def feddecorr(weight: float = 0.1) -> Algorithm:
    """Cross-entropy + weight * ||K||_F^2 / d^2, K (d, d) the correlations of a batch's features.

    Shi et al. 2023, Eq. 6. Needs a network with ``body`` and ``head``.
    """

    def decorrelated(net: Any, x: Tensor, y: Tensor, told: Mapping[str, Any]) -> Tensor:
        z = net.body(x)
        centred = z - z.mean(dim=0)
        normed = centred / (centred.square().mean(dim=0) + 1e-8).sqrt()
        K = normed.T @ normed / len(z)
        return F.cross_entropy(net.head(z), y) + told["weight"] * K.square().mean()

    return Algorithm("FedDecorr", {"weight": float(weight)}, Objective(decorrelated))


def _batch_norms(net: nn.Module, method: str) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {
        name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    if not layers:
        raise ValueError(
            f"{method}() treats batch-norm layers apart, but this network has none; build it with norm='batch'"
        )
    return layers


def fedbn() -> Algorithm:
    """Batch-norm layers, their statistics included, stay on the client (Li et al. 2021, Algorithm 1)."""

    def batch_norms(net: nn.Module, t: int) -> Travels:
        return Travels(
            at_home=frozenset(
                f"{layer}.{name}"
                for layer, m in _batch_norms(net, "fedbn").items()
                for name in (*dict(m.named_parameters()), *dict(m.named_buffers()))
            )
        )

    return Algorithm("FedBN", travels=batch_norms)


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
    checks.positive(max_norm=max_norm)
    if base.step == (decay, clip):
        raise ValueError(
            f"base must not have its weight decay inside the clip already, got {base.name!r}: wrapping "
            "FedNAR twice would change nothing but its radius; give the other max_norm to the inner one"
        )
    settings = {**base.settings, "clip": float(max_norm), "annealing": float(annealing)}
    return replace(base, name=f"{base.name} + NAR", step=(decay, clip), settings=settings)


def silobn() -> Algorithm:
    """Batch-norm statistics stay on the client; scale and shift are shared (Andreux et al. 2020, Section 2.3)."""

    def statistics(net: nn.Module, t: int) -> Travels:
        return Travels(
            at_home=frozenset(
                f"{layer}.{name}"
                for layer, m in _batch_norms(net, "silobn").items()
                for name in dict(m.named_buffers())
            )
        )

    return Algorithm("SiloBN", travels=statistics)


def fixbn(after: int) -> Algorithm:
    """After ``after`` rounds of FedAvg, batch norm uses the global statistics of then, in training too.

    Scale and shift go on learning (Zhong et al. 2023, Section 4).
    """
    checks.whole(after=after)

    def freeze(net: nn.Module, t: int) -> Travels:
        for layer in _batch_norms(net, "fixbn").values():
            layer.train(t < after)
        return Travels()

    return Algorithm("FixBN", {"after": after}, travels=freeze)


def standalone() -> Algorithm:
    """Nothing travels: every client trains its own network on its own data."""

    def nothing(net: nn.Module, t: int) -> Travels:
        return Travels(at_home=frozenset((*dict(net.named_parameters()), *dict(net.named_buffers()))))

    return Algorithm("Standalone", travels=nothing)


def fedwon(agc: float | None = None, standardised: nn.Module | None = None) -> Algorithm:
    """FedAvg, for a network without normalisation whose convolutions are :class:`fedlib.norms.ScaledWSConv2d`.

    Zhuang and Lyu 2024, Section 3.3. ``agc`` adds adaptive gradient clipping; the paper uses 0.1 at batches of 32.
    The text leaves open whether raw or standardised weights are averaged. Here it is the raw ones, unless a network
    like the trained one is given as ``standardised``.
    """
    method = Algorithm("FedWon")
    if agc is not None:

        def clip_units(G: Tensor, W: Tensor, local: Local) -> Tensor:
            return adaptive_clip(G, W, local.units, local["agc"])

        method = replace(method, settings={"agc": float(agc)}, correct=(clip_units,))
    if standardised is not None:
        layout = Layout(standardised)
        convs = {f"{name}.weight": m for name, m in standardised.named_modules() if isinstance(m, ScaledWSConv2d)}

        def collect(reports: Reports) -> dict[str, Tensor]:
            W = reports.w[:, None] + reports.deltas
            for name, weight in zip(layout.parameters, layout.views(W), strict=True):
                if name in convs:
                    weight.copy_(standardise_rows(weight, convs[name].gamma, convs[name].eps))
            return {"standardised": torch.einsum("sk,skp->sp", reports.p, W)}

        def move(w: Tensor, update: Update) -> Tensor:
            return update.sums["standardised"] / update.came

        settings = {**method.settings, "standardised": True}
        method = replace(method, settings=settings, server=ServerOpt(move, collect=collect))
    return method


def simclr(tau: float = 0.5, smallest: float = 0.2, colour: float = 0.4) -> Algorithm:
    """FedAvg without labels: each client learns to tell its own images apart (:func:`nt_xent`).

    A view is compared with the others of its client's batch only, which must hold two images at least. ``smallest`` and
    ``colour`` say how different two views are: :func:`fedlib.data.random_views`.
    """
    _require(_FALLING, smallest=smallest)
    checks.fraction(colour=colour)
    # The views are drawn for all runs alike, so these two are no numbers that could differ between them.
    settings = {"tau": float(tau), "views": f"smallest {smallest:g}, colour {colour:g}"}
    view = partial(random_views, smallest=smallest, colour=colour)
    return Algorithm("SimCLR", settings, Objective(nt_xent, view, labels=False))


def phases(depth: int, active: int = 1, progressive: bool = False) -> list[list[int]]:
    """The blocks that learn in each phase, from the shallowest to the deepest, ``active`` new ones in every phase.

    ``progressive``: all blocks so far learn together, as in ProgFed (Wang et al. 2022). ``active=depth`` is one phase:
    training end to end. Raises ValueError unless ``active`` divides ``depth``.
    """
    if active < 1 or depth % active:
        raise ValueError(f"active must divide the depth {depth}, got {active}")
    return [list(range(1 if progressive else end - active + 1, end + 1)) for end in range(active, depth + 1, active)]


def layerwise(
    base: Algorithm,
    plan: Sequence[Sequence[int]],
    rounds: int,
    budget: int | None = None,
    seed: int = 0,
    every: int = 1,
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
        every: rounds from one draw of the dropout to the next; ``rounds`` draws once a phase.

    Raises:
        TypeError: ``base`` is no Algorithm (``simclr`` instead of ``simclr()``, say).
        ValueError: a plan that skips a block or trains one before those below it, rounds below 1, a budget below 2,
            above the depth, or too small for block 1 and the newest blocks, a seed below 0, or a base that prepares
            its rounds itself, such as ``fixbn`` or one that is wrapped already.
    """
    _check_base(base)
    if {"plan", "after"} & {*base.settings}:  # layerwise itself, and FixBN, which freezes layers in its own rounds
        raise ValueError(f"base must not prepare its rounds itself, got {base.name!r}: layerwise would replace that")
    plan = [sorted(set(active)) for active in plan]
    new = _new_blocks(plan)
    depth = max(new[-1])
    droppable = [range(2, min(blocks)) for blocks in new] if len(plan) > 1 else [range(2, depth + 1)]
    checks.whole(rounds=rounds)
    checks.whole(every=every)
    checks.whole(0, seed=seed)
    if budget is not None:
        least = max(2, *(max(active) - len(older) for active, older in zip(plan, droppable, strict=True)))
        if not isinstance(budget, int) or not least <= budget <= depth:
            raise ValueError(
                f"budget must be a number of blocks from {least} (block 1 and the newest always run) "
                f"to the depth {depth}, got {budget!r}"
            )

    def travels(net: nn.Module, t: int) -> Travels:
        s = min(t // rounds, len(plan) - 1)
        present = max(plan[s])
        over = 0 if budget is None else max(0, present - budget)
        dropped = (
            np.random.default_rng([seed, t - t % every, 0, 1]).choice(droppable[s], over, replace=False) if over else ()
        )
        body = _blocks(net, depth)
        body.run_only({*range(1, present + 1)} - {*dropped}, grown=present, learning=plan[s])
        at_home = base.travels(net, t).at_home if base.travels else frozenset()
        return Travels(at_home, absent=frozenset(f"body.{name}" for name in body.left_out()))

    settings = {
        "plan": " | ".join(" ".join(map(str, active)) for active in plan),
        "rounds": rounds,
        "budget": budget,
        "dropout_seed": seed if budget else None,
        **({"dropout_every": every} if budget and every > 1 else {}),
    }
    return replace(base, name=f"{base.name}, layer-wise", settings={**base.settings, **settings}, travels=travels)


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


def _blocks(net: nn.Module, depth: int) -> Any:
    """The body of a network whose blocks can be left out: it has ``blocks``, ``run_only`` and ``left_out``."""
    body: Any = getattr(net, "body", None)
    there = len(body.blocks) if hasattr(body, "run_only") else "no"
    if there != depth:
        raise ValueError(
            f"the plan is for {depth} blocks, but the network has {there} blocks that can be left out; build it "
            f"with vit_encoder(..., depth={depth})"
        )
    return body


def _check_base(base: Algorithm) -> None:
    if not isinstance(base, Algorithm):
        raise TypeError(f"base must be an Algorithm, such as fedavg(); got {base!r}")


# --- settings: what a number may be, wherever it comes from ---

Rule = tuple[Callable[[float], bool], str]
_FINITE: Rule = (math.isfinite, "be a finite number")
_POSITIVE: Rule = (lambda v: math.isfinite(v) and v > 0, "be a positive finite number")
_NOT_NEGATIVE: Rule = (lambda v: math.isfinite(v) and v >= 0, "be finite and not negative")
_RADIUS: Rule = (lambda v: v > 0, "be positive")
_FRACTION: Rule = (lambda v: 0 <= v <= 1, "lie in [0, 1]")
_BELOW_ONE: Rule = (lambda v: 0 <= v < 1, "lie in [0, 1)")  # at 1 a mean would never move
_FALLING: Rule = (lambda v: 0 < v <= 1, "lie in (0, 1]")
ACCEPTED: dict[str, Rule] = {
    "mu": _NOT_NEGATIVE, "eps": _NOT_NEGATIVE, "v0": _NOT_NEGATIVE, "weight_decay": _NOT_NEGATIVE,
    "tau": _POSITIVE, "server_lr": _POSITIVE, "agc": _POSITIVE, "weight": _POSITIVE, "penalty": _POSITIVE,
    "eps_0": _POSITIVE,
    "alpha": _FRACTION, "momentum": _FRACTION, "beta1": _BELOW_ONE, "beta2": _BELOW_ONE,
    "annealing": _FALLING, "eps_decay": _FALLING, "clip": _RADIUS,
}  # fmt: skip


def check_setting(name: str, value: object) -> None:
    """Refuse a number that makes no sense under its name, in a method's settings or in an axis of a sweep.

    Raises:
        ValueError: it names the setting, what it got and what it accepts.
    """
    if isinstance(value, float):
        _require(ACCEPTED.get(name, _FINITE), **{name: value})


def _require(rule: Rule, **values: float) -> None:
    accepts, words = rule
    for name, value in values.items():
        if not accepts(value):
            raise ValueError(f"{name} must {words}, got {value!r}")

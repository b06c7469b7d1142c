"""What travels between clients and server, and what becomes of it on the way up: tensors with names, nothing else.

S runs of a sweep go side by side. A client, a machine that holds a thousand of them, a wave of a simulation: each turns
what its clients send into :class:`Totals`, sums that add up. Whoever adds up the last of them moves the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlib.workers import Workers, slices

COLUMNS = 1 << 15  # of the cohort that are averaged at a time on a CPU; they fit into its cache


@dataclass
class Down:
    """What the server sends before round ``t``.

    Attributes:
        w: (S, P), the global vector of each run.
        buffers: (S, Q), the global batch-norm statistics.
        told: name -> (S, P), the rows of the server's memory that its clients are told (SCAFFOLD's c).
        t: 0, 1, ...
    """

    w: Tensor
    buffers: Tensor
    told: dict[str, Tensor]
    t: int


@dataclass
class Up:
    """What K clients of each of S runs send back.

    Attributes:
        delta: (S, K, P), how each client's vector changed: w_k - w.
        buffers: (S, K, Q), its batch-norm statistics.
        sent: name -> (S, K, P), how its memory of that name changed.
        loss: (S, K), mean training loss over its local steps.
        examples: (S, K), how many it holds.
        t: the round that this answers.
    """

    delta: Tensor
    buffers: Tensor
    sent: dict[str, Tensor]
    loss: Tensor
    examples: Tensor
    t: int

    def take(self, runs: Tensor) -> Up:
        """The same for some of the runs: positions, or a mask (S,)."""
        sent = {name: rows[runs] for name, rows in self.sent.items()}
        return Up(self.delta[runs], self.buffers[runs], sent, self.loss[runs], self.examples[runs], self.t)

    def check(self, down: Down) -> None:
        """Refuse an answer to another round, and rows or names that do not fit what was sent down.

        Raises:
            ValueError: it names what differs, what it got and what it wanted.
        """
        if self.t != down.t:
            raise ValueError(f"an answer to round {self.t + 1} came in round {down.t + 1}; it must be left out")
        S, K = self.loss.shape
        wanted = {"delta": (S, K, down.w.shape[1]), "buffers": (S, K, down.buffers.shape[1]), "examples": (S, K)}
        wanted |= dict.fromkeys(down.told, (S, K, down.w.shape[1]))
        got = {
            name: tuple(rows.shape)
            for name, rows in (*vars(self).items(), *self.sent.items())
            if isinstance(rows, Tensor) and name != "loss"
        }
        if got != wanted:
            differ = "; ".join(
                f"{name} {got.get(name, 'missing')}, wanted {wanted.get(name, 'none')}"
                for name in sorted({*got, *wanted})
                if got.get(name) != wanted.get(name)
            )
            raise ValueError(f"an answer of {K} client(s) in {S} run(s) does not fit this federation: {differ}")


@dataclass
class Reports:
    """What a method's ``collect`` looks at: what K clients of each of S runs sent.

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
class Totals:
    """Sums over clients, of S runs. ``totals += more`` adds those of other clients.

    Attributes:
        delta: (S, P), sum_k p_k (w_k - w), the pseudo-gradient, negated.
        buffers: (S, Q), sum_k p_k (their buffers).
        losses: (S,), sum_k p_k (their losses).
        examples: (S,), how many they hold: those of the whole cohort unless a client was lost.
        sums: name -> (S, ...), what the method's ``collect`` made of their reports.
    """

    delta: Tensor
    buffers: Tensor
    losses: Tensor
    examples: Tensor
    sums: dict[str, Tensor]

    @classmethod
    def none(cls, w: Tensor, buffers: Tensor) -> Totals:
        """Those of no client yet, of all S runs: w (S, P), buffers (S, Q)."""
        nothing = w.new_zeros(len(w))
        return cls(torch.zeros_like(w), torch.zeros_like(buffers), nothing, nothing.clone(), {})

    @classmethod
    def of(
        cls,
        up: Up,
        down: Down,
        runs: Tensor,
        examples: Tensor,
        everybody: Tensor | float,
        collect: Callable[[Reports], dict[str, Tensor]],
        workers: Workers | None = None,
    ) -> Totals:
        """Add up what clients sent.

        Args:
            down: what they had been sent; ``runs`` (S,) which of its runs they were in.
            examples: (S, 1), how many the whole cohort of the round holds.
            everybody: how many all clients of the federation hold: one number, or (S, 1).
            collect: the method's further sums.

        Raises:
            ValueError: the answer is to another round, or does not fit; see :meth:`Up.check`.
        """
        up.check(down)
        w = down.w[runs]
        p, delta = up.examples / examples, torch.empty_like(w)

        def average(columns: slice) -> None:
            delta[:, columns] = torch.einsum("sk,skp->sp", p, up.delta[..., columns])

        P = w.shape[1]
        (workers or Workers()).map(average, slices(P, COLUMNS if w.device.type == "cpu" else P))
        sums = collect(Reports(w, up.delta, p, up.examples / everybody, up.sent))
        buffers = torch.einsum("sk,skq->sq", p, up.buffers)
        return cls(delta, buffers, (p * up.loss).sum(dim=1), up.examples.sum(dim=1), sums)

    def __iadd__(self, other: Totals) -> Totals:
        return self.add(other, torch.arange(len(self.losses), device=self.losses.device))

    def add(self, other: Totals, runs: Tensor) -> Totals:
        """Add the totals of some of the runs: ``other`` holds those at the positions ``runs``."""
        for name in ("delta", "buffers", "losses", "examples"):
            getattr(self, name).index_add_(0, runs, getattr(other, name))
        for name, value in other.sums.items():
            self.sums.setdefault(name, value.new_zeros(len(self.losses), *value.shape[1:])).index_add_(0, runs, value)
        return self

    def take(self, runs: Tensor) -> Totals:
        """Those of some of the runs."""
        sums = {name: value[runs] for name, value in self.sums.items()}
        return Totals(self.delta[runs], self.buffers[runs], self.losses[runs], self.examples[runs], sums)

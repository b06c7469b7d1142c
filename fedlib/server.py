"""The server's side of a round: it keeps the global vector and a memory of its own, and sees sums, never a client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from fedlib.accelerator import Numbers
from fedlib.algorithms import ServerOpt, Update
from fedlib.messages import Down, Totals


class Server:
    """The servers of S runs, side by side.

    Args:
        opt: how they move.
        w, buffers: (S, P) and (S, Q), what each starts from; w is changed in place.
        settings: the method's numbers in each run.
        clients: N, how many there are in the federation.
        told: names of the memory that clients are told.
    """

    def __init__(
        self,
        opt: ServerOpt,
        w: Tensor,
        buffers: Tensor,
        settings: Sequence[Mapping[str, float]],
        clients: int,
        told: Collection[str] = (),
    ):
        self.opt, self.w, self.buffers, self.clients, self.told = opt, w, buffers, clients, tuple(told)
        self.settings = [dict(own) for own in settings]
        self.memory = {name: self._initial(value) for name, value in opt.memory.items()}
        self.numbers = Numbers(w.device)

    def _initial(self, value: float | None | Callable[[Mapping], float]) -> Tensor:
        """(S, P), what a memory starts as."""
        if value is None:
            return self.w.clone()
        values = [value(own) if callable(value) else value for own in self.settings]
        return self.w.new_tensor(values)[:, None].repeat(1, self.w.shape[1])

    def begin(self, t: int) -> Down:
        """What every client of round t gets."""
        return Down(self.w, self.buffers, {name: self.memory[name] for name in self.told}, t)

    def move(
        self,
        totals: Totals,
        runs: Sequence[int],
        t: int,
        *,
        frozen: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> Tensor:
        """End round t of some of the runs; one whose step is not finite stays where it was.

        Args:
            totals: of all S runs.
            frozen: bool (P,), columns that stand still; momentum must not move them either.
            expected: (S,), how many examples the whole cohort holds. Where fewer came, the mean is over those.

        Returns:
            bool, for each of ``runs`` in turn whether its weights, memory and buffers are finite.
        """
        # Runs with the same numbers move together; numbers stay Python's own, which round alike alone and in a sweep.
        together: dict[tuple, list[int]] = {}
        for s in runs:
            together.setdefault(tuple(self.settings[s].items()), []).append(s)
        fine = torch.ones(len(self.w), dtype=torch.bool, device=self.w.device)
        for key, members in together.items():
            some = self.numbers(members)
            fine[some] = self._move(totals, some, t, dict(key), frozen, expected)
        return fine[self.numbers(runs)]

    def _move(
        self,
        totals: Totals,
        runs: Tensor,
        t: int,
        settings: dict[str, float],
        frozen: Tensor | None,
        expected: Tensor | None,
    ) -> Tensor:
        some = totals.take(runs)
        came = torch.ones_like(some.examples)[:, None]
        if expected is not None:  # were clients lost, sums of p_k x_k become means over those that came
            came = (some.examples / expected[runs])[:, None]
            some.delta, some.buffers = some.delta / came, some.buffers / came
        w, memory = self.w[runs], {name: rows[runs] for name, rows in self.memory.items()}
        moved = self.opt.move(w, Update(some.delta, some.sums, memory, self.clients, t, settings, came))
        moved = moved if frozen is None else torch.where(frozen, w, moved)
        new = [(self.w, moved), (self.buffers, some.buffers), *((self.memory[name], memory[name]) for name in memory)]
        # A sum is not finite where a number is not, and reads each only once.
        fine = torch.stack([rows.sum(dim=1).isfinite() for _, rows in new]).all(dim=0)
        for kept, rows in new:
            kept[runs] = torch.where(fine[:, None], rows, kept[runs])
        return fine

    def shown(self) -> Tensor:
        """(S, P), the vector that is evaluated."""
        return self.opt.shown(self.w, self.memory)

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {"w": self.w, "buffers": self.buffers, "memory": self.memory}

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.w, self.buffers, self.memory = state["w"], state["buffers"], state["memory"]

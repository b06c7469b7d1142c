"""The clients' side of a round: what they hold and keep, their local training, and what they send back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlib import accelerator
from fedlib.algorithms import Algorithm
from fedlib.cohort import OF_ALL_METHODS, Batches, Local, Stage, Trainer
from fedlib.messages import COLUMNS, Down, Up
from fedlib.workers import slices


@dataclass
class Kept:
    """What clients will keep once the server has used their round: (memory (S, N, C), runs, clients, rows) each."""

    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __iadd__(self, other: Kept) -> Kept:
        self.rows += other.rows
        return self


class Clients:
    """N clients of S runs: one machine may hold them all, or a single one.

    Args:
        trainer: trains their rows, on the images they hold.
        algorithm: the method.
        counts: (S, N, C), how many images of each class every client holds; or (N, C), where that is so in all runs.
        w, buffers: (S, P) and (S, Q), the weights that each run starts from.
        settings: of each run ``lr``, ``weight_decay``, ``clip`` (or None), ``annealing`` and the method's own numbers.
        stage: of the first round.
        lr_decay: the learning rate of round t is ``lr * lr_decay**t``.
    """

    def __init__(
        self,
        trainer: Trainer,
        algorithm: Algorithm,
        counts: Tensor,
        w: Tensor,
        buffers: Tensor,
        settings: Sequence[Mapping],
        stage: Stage,
        lr_decay: float = 1.0,
    ):
        self.trainer, self.algorithm, self.lr_decay = trainer, algorithm, lr_decay
        self.layout, self.workers = trainer.layout, trainer.workers
        self.counts = counts.expand(len(w), *counts.shape[-2:])
        self.sizes = self.counts.sum(dim=2)
        self.settings, self.numbers = settings, self._numbers(settings, w)
        self.units = self.layout.units()
        N = self.sizes.shape[1]
        self.memory = {name: w.new_zeros(len(w), N, self.layout.P) for name in algorithm.keeps}
        # What never leaves a client, and the columns where it stands.
        self.home = w[:, None, stage.at_home].repeat(1, N, 1)
        self.buffers_home = buffers[:, None, stage.buffers_at_home].repeat(1, N, 1)
        self.rows: Tensor | None = None
        self.enter(stage)

    @staticmethod
    def _numbers(settings: Sequence[Mapping], like: Tensor) -> dict[str, Tensor]:
        """name -> (S,), the numbers that a step of any run needs."""
        own = [name for name, value in settings[0].items() if isinstance(value, float) and name not in OF_ALL_METHODS]
        used = [name for name in ("weight_decay", "clip") if any(s[name] for s in settings)]
        return {
            name: like.new_tensor([math.inf if s[name] is None else s[name] for s in settings])
            for name in ("lr", *used, *(n for n in own if n != "lr"))
        }

    @property
    def personal(self) -> bool:
        """Whether parts of the network stay on the clients."""
        return bool(len(self.stage.at_home) or len(self.stage.buffers_at_home))

    def enter(self, stage: Stage) -> None:
        """Get ready for a round."""
        self.stage = stage
        self.trainer.enter(stage)

    def train(self, runs: Tensor, clients: Tensor, batches: Batches, down: Down) -> tuple[Up, Kept, Tensor]:
        """Local training of K clients of each of S of the runs.

        Args:
            runs: int64 (S,), which.
            clients: int64 (S, K), whom; positions among the clients held here.
            batches: of their S * K rows.
            down: what the server sent, of all runs.

        Returns:
            What they send, what they will keep (:meth:`keep`), and bool (S, K): whose weights and loss are finite.

        Raises:
            ValueError: ``down`` is of another round than the stage, or its rows do not fit the network.
        """
        self._check(down)
        S, K = clients.shape
        run, client = runs.repeat_interleave(K), clients.flatten()
        W, buffers = self._fresh_rows(down.w, run), down.buffers[run]
        W[:, self.stage.at_home] = self.home[run, client]
        buffers[:, self.stage.buffers_at_home] = self.buffers_home[run, client]
        local = self._local(run, client, batches, down)
        losses = self.trainer(W, buffers, batches, local)
        kept, sent = Kept(), {}
        for name, remember in self.algorithm.keeps.items():
            new = remember(W, local)
            if new.untyped_storage().data_ptr() == W.untyped_storage().data_ptr():
                new = new.clone()  # W turns into changes below
            kept.rows.append((self.memory[name], runs, clients, new.view(S, K, -1)))
            if name in self.algorithm.shared:
                sent[name] = (new - local.client_rows[name]).view(S, K, -1)
        W, buffers, losses = W.view(S, K, -1), buffers.view(S, K, -1), losses.view(S, K)
        home, buffers_home = W[..., self.stage.at_home], buffers[..., self.stage.buffers_at_home]
        kept.rows += [(self.home, runs, clients, home), (self.buffers_home, runs, clients, buffers_home)]
        finite = losses.isfinite() & home.isfinite().all(dim=2) & self._subtract(W, down.w[runs])
        return Up(W, buffers, sent, losses, self.sizes[runs[:, None], clients], down.t), kept, finite

    def _subtract(self, W: Tensor, w: Tensor) -> Tensor:
        """Turn weights W (S, K, P) into changes, in place: nobody needs them any more. (S, K), which are finite."""
        W[..., self.stage.at_home] = w[:, None, self.stage.at_home]

        def change(columns: slice) -> Tensor:
            return W[..., columns].sub_(w[:, None, columns]).sum(dim=2).isfinite()

        P = W.shape[2]
        return torch.stack(self.workers.map(change, slices(P, COLUMNS if W.device.type == "cpu" else P))).all(dim=0)

    def _fresh_rows(self, w: Tensor, run: Tensor) -> Tensor:
        """(R, P), the global vector of its run in every row; the same memory every time, which saves making it."""
        if self.rows is None or len(self.rows) < len(run):
            self.rows = w.new_empty(len(run), self.layout.P)
        rows = self.rows
        self.workers.map(
            lambda some: torch.index_select(w, 0, run[some], out=rows[some]), self.workers.shares(len(run))
        )
        return rows[: len(run)]

    def _local(self, run: Tensor, client: Tensor, batches: Batches, down: Down) -> Local:
        numbers = {name: values[run][:, None] for name, values in self.numbers.items()}
        numbers["lr"] = numbers["lr"] * self.lr_decay**down.t
        if "weight_decay" in numbers and any(s["annealing"] != 1 for s in self.settings):
            annealed = torch.tensor([s["annealing"] ** down.t for s in self.settings], dtype=down.w.dtype)
            annealed = accelerator.sent(annealed, down.w.device)
            numbers["weight_decay"] = numbers["weight_decay"] * annealed[run][:, None]
        taken = [sum(size > 0 for size in sizes) for sizes in zip(*batches.size, strict=True)]
        steps = accelerator.sent(torch.tensor(taken, dtype=down.w.dtype), down.w.device)
        kept = {name: rows[run, client] for name, rows in self.memory.items()}
        return Local(
            run, client, steps[:, None], self.counts[run, client], down.w, numbers, self.units, down.told, kept
        )

    def keep(self, kept: Kept, without: Collection[int] = ()) -> None:
        """The server has used the round, of all runs but some: now, and only now, their clients' memory changes."""
        for memory, runs, clients, rows in kept.rows:
            if without:
                on = torch.isin(runs, runs.new_tensor([*without]), invert=True)
                runs, clients, rows = runs[on], clients[on], rows[on]
            memory[runs[:, None], clients] = rows

    def row(self, s: int, k: int, w: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """Client k's own network in run s: new rows (P,) and (Q,), the global ones with what stays at home put in."""
        w, buffers = w.clone(), buffers.clone()
        w[self.stage.at_home], buffers[self.stage.buffers_at_home] = self.home[s, k], self.buffers_home[s, k]
        return w, buffers

    def _check(self, down: Down) -> None:
        if down.t != self.stage.t:
            raise ValueError(
                f"these weights are for round {down.t + 1}, but the clients are in round {self.stage.t + 1}"
            )
        S, told = len(self.settings), {name: tuple(rows.shape) for name, rows in down.told.items()}
        wanted = {"w": (S, self.layout.P), "buffers": (S, self.layout.Q)} | dict.fromkeys(
            self.algorithm.shared, (S, self.layout.P)
        )
        got = {"w": tuple(down.w.shape), "buffers": tuple(down.buffers.shape), **told}
        if got != wanted:
            raise ValueError(
                f"what the server sent does not fit {self.algorithm.name} and this network: got {got}, wanted {wanted}"
            )

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {"memory": self.memory, "home": self.home, "buffers_home": self.buffers_home}

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.memory, self.home, self.buffers_home = state["memory"], state["home"], state["buffers_home"]

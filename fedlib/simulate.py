"""The rounds: sample clients, train them, aggregate, evaluate, checkpoint; the result is a :class:`Run`.

A sweep is a cohort too. Runs that differ only in their seed or in a learning rate change no shape, so their clients
are more rows of the same matrix: S runs of K clients are trained as S * K rows.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fedlib import cohort
from fedlib.algorithms import Algorithm, Reports, Update, fedavg
from fedlib.cohort import Batches, Layout, Local, Trainer, cores, one_thread, slices
from fedlib.data import Data, prepare

AUGMENTATIONS = ("crop", "flip", "flip+crop")
ENGINES = ("auto", "clients", "stacked")
PRECISIONS = ("float32", "tf32", "bf16", "float64")
COLUMNS = 1 << 15  # of the cohort that are averaged at a time on a CPU; they fit into its cache
CHUNK = 32  # rows stacked together on a CPU; the same for any number of workers, which then cannot change a bit
SHARE = 16  # rows of a wave take this part of free memory at most: training needs several copies, and activations
PADDING = 4  # pixels around an image before it is cropped at random


@dataclass
class Run:
    """One federated training, as far as it went.

    Attributes:
        config: everything that determines the result.
        history: one line per evaluated round: ``round``, ``loss`` (mean over the local steps of that round's clients),
            ``accuracy`` (pooled, on the whole test set), ``client_accuracy`` (mean over clients of each one's accuracy
            on its own test images; NaN without ``test_parts``), ``bytes_down`` and ``bytes_up`` (of that round, all
            clients together). Accuracies lie in [0, 1].
        clients: DataFrame of each client's accuracy on its own test images, in [0, 1]: one line per evaluated round
            (index ``round``), one column per client (0, 1, ...). Without ``test_parts`` there are no columns, unless
            parts of the network stay on the clients: then each client's network meets the whole test set.
        diverged: None, or what went wrong at which round and on which clients; the history then ends before it.
        seconds: wall time of training and evaluation, shared with the other runs of the same sweep.
    """

    config: dict
    history: pd.DataFrame
    clients: pd.DataFrame
    diverged: str | None
    seconds: float
    _model: Callable[[int | None], nn.Module] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Pooled test accuracy after the last evaluated round; NaN if there is none."""
        return float(self.history["accuracy"].iloc[-1]) if len(self.history) else math.nan

    def model(self, client: int | None = None) -> nn.Module:
        """A new module with the weights of the last round (of the last finite one, for a run that diverged).

        With ``client``, what that client has kept at home takes its place in it (batch norm under FedBN, say); where
        nothing stays at home that is the global model.
        """
        clients = self.config["clients"]
        if client is not None and not 0 <= client < clients:
            raise ValueError(f"client must be a number from 0 to {clients - 1}, or None, got {client!r}")
        return self._model(client)


def run(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    parts: Sequence[Tensor],
    algorithm: Algorithm | None = None,
    *,
    lr: float,
    seed: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = None,
    mu: float | None = None,
    **options,
) -> Run:
    """One federated training. See :func:`sweep` for the arguments; here each of these is a single value."""
    runs = sweep(
        model,
        data,
        parts,
        algorithm,
        lr=[lr],
        seed=[seed],
        weight_decay=[weight_decay],
        clip=[clip],
        mu=[mu],
        **options,
    )
    return runs[0]


def sweep(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    parts: Sequence[Tensor],
    algorithm: Algorithm | None = None,
    *,
    rounds: int,
    lr: Sequence[float],
    seed: Sequence[int] = (0,),
    weight_decay: Sequence[float] = (0.0,),
    clip: Sequence[float | None] = (None,),
    mu: Sequence[float | None] = (None,),
    batch_size: int = 32,
    local_steps: int | None = None,
    local_epochs: int | None = None,
    clients_per_round: int | None = None,
    lr_decay: float = 1.0,
    augment: str | None = None,
    normalise: bool = False,
    test_parts: Sequence[Tensor] | None = None,
    evaluate_every: int | None = None,
    device: str | torch.device | None = None,
    engine: str = "auto",
    chunk: int | None = None,
    wave: int | None = None,
    workers: int | None = None,
    precision: str = "float32",
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    checkpoint_minutes: float = 5.0,
    progress: bool | str = True,
) -> list[Run]:
    """Every combination of ``lr``, ``weight_decay``, ``clip``, ``mu`` and ``seed``, trained together.

    Args:
        model: a function that makes the network, called once for every seed after ``torch.manual_seed(seed)``; or a
            module, whose weights every run then starts from.
        data: what is learned.
        parts: one index tensor per client into the training images.
        algorithm: a method; FedAvg when left out.
        rounds: communication rounds T.
        lr, weight_decay, clip, mu, seed: the values to combine; ``clip`` is the largest norm of a client's gradient (of
            gradient and weight decay together under :func:`fedlib.algorithms.fednar`, whose ``max_norm`` it replaces),
            ``mu`` the proximal weight of :func:`fedlib.algorithms.fedprox` in place of its own.
        batch_size: images in a local step.
        local_steps: steps per round and client. Batches run on from one shuffling of the client's images to the next,
            all of them full (or as large as the client).
        local_epochs: passes per round over the client's images instead, the last batch of each as large as is left.
        clients_per_round: size of the cohort, drawn without replacement; all clients when left out.
        lr_decay: the learning rate of round t is ``lr * lr_decay**t``, t = 0, 1, ...
        augment: ``"crop"`` (zero padding of 4), ``"flip"``, ``"flip+crop"`` or None; per image.
        normalise: subtract ``data.mean`` and divide by ``data.std``; otherwise images lie in [0, 1].
        test_parts: one index tensor per client into the test images, for per-client accuracy.
        evaluate_every: rounds between evaluations; the last round is always evaluated. Default: 20 times in a run.
        device: default ``"cuda"`` where there is one.
        engine: ``"clients"``, ``"stacked"`` or ``"auto"``; see :mod:`fedlib.cohort`. ``Run.config`` has the choice.
        chunk: rows stacked together; halved, with a warning, when a GPU's memory does not hold their training.
        wave: clients of each run that are trained at a time, at most. A round trains its cohort in waves of about the
            same size and adds up what they send, so that a wave bounds the memory for weights and their training.
            When left out, the whole cohort, or as much of it as the free memory allows. It changes no number beyond
            rounding, and a checkpoint may be continued with another one.
        workers: CPU threads; the number of cores when left out. More of them than cores are accepted with a warning.
        precision: ``"float32"``, ``"tf32"`` (on a GPU only), ``"bf16"`` (autocast: matrix products and convolutions in
            bfloat16, weights and their sums in float32) or ``"float64"``.
        checkpoint: a file. It is written every ``checkpoint_every`` rounds (if given) and every
            ``checkpoint_minutes``; when it exists, the sweep continues from it and gives the result that an
            uninterrupted one gives, bit for bit on a CPU.
        progress: show a progress bar; a string is its label.

    Returns:
        One :class:`Run` for each combination, in the order of ``itertools.product(lr, weight_decay, clip, mu, seed)``.

    Raises:
        ValueError: for an argument that makes no sense, or a checkpoint that belongs to another configuration.
    """
    algorithm = algorithm or fedavg()
    for name, values in (("lr", lr), ("weight_decay", weight_decay), ("clip", clip), ("mu", mu), ("seed", seed)):
        single = isinstance(values, str) or getattr(values, "shape", None) == ()  # both claim that they can be iterated
        if single or not isinstance(values, Iterable):
            raise ValueError(f"{name} must be a list of the values to combine, got {values!r}; fl.run takes one")
    mu = [algorithm.mu if value is None else value for value in mu]
    settings = [
        dict(zip(("lr", "weight_decay", "clip", "mu", "seed"), map(_plain_number, values), strict=True))
        for values in itertools.product(lr, weight_decay, clip, mu, seed)
    ]
    K = len(parts) if clients_per_round is None else clients_per_round
    _check(
        data,
        parts,
        test_parts,
        settings,
        K,
        rounds=rounds,
        batch_size=batch_size,
        local_steps=local_steps,
        local_epochs=local_epochs,
        lr_decay=lr_decay,
        evaluate_every=evaluate_every,
        chunk=chunk,
        wave=wave,
        workers=workers,
        checkpoint_every=checkpoint_every,
    )
    if algorithm.mu is None and any(s["mu"] is not None for s in settings):
        raise ValueError(
            f"mu is the weight of a proximal term, which {algorithm.name!r} does not have; leave it out, "
            "or take fl.algorithms.fedprox()"
        )
    for name, value, accepted in (
        ("augment", augment, (None, *AUGMENTATIONS)),
        ("engine", engine, ENGINES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")
    if data.is_text and (augment or normalise):
        raise ValueError(
            f"augment must be None and normalise False for the text {data.name!r}, got {augment!r} and {normalise!r}"
        )
    device = _device(device)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision 'tf32' needs a CUDA device, this run is on {device.type!r}")
    workers = 1 if device.type != "cpu" else cores() if workers is None else workers
    if workers > cores():
        warnings.warn(
            f"workers is {workers}, but this process may use {cores()} cores: the workers will wait for one another",
            stacklevel=2,
        )
    dtype = torch.float64 if precision == "float64" else torch.float32
    networks = _networks(model, [s["seed"] for s in settings], dtype)
    _check_network(networks[0], data, algorithm.labels)
    if algorithm.view:
        if data.is_text:
            raise ValueError(f"{algorithm.name!r} distorts images, but {data.name!r} is a text")
        _check_views(algorithm.name, batch_size, [len(p) for p in parts], by_epochs=local_steps is None)
    waves = -(-K // (wave or _fitting(networks[0], algorithm, len(settings), len(parts), device)))
    rows = len(settings) * K
    engine = _choose_engine(networks[0], device, data, rows) if engine == "auto" else engine
    chunk = chunk or (rows if device.type == "cuda" else min(rows, CHUNK))
    config = {
        "algorithm": algorithm.name,
        "settings": dict(algorithm.settings),
        "data": data.name,
        "train_images": len(data.x_train),
        "test_images": len(data.x_test),
        "parts": _digest(parts),
        "test_parts": _digest(test_parts),
        "clients": len(parts),
        "clients_per_round": K,
        "rounds": rounds,
        "batch_size": batch_size,
        "local_steps": local_steps,
        "local_epochs": local_epochs,
        "lr_decay": lr_decay,
        "augment": augment,
        "normalise": normalise,
        "evaluate_every": evaluate_every or max(1, rounds // 20),
        "precision": precision,
        "device": device.type,
        "engine": engine,
        "chunk": chunk,
        "wave": -(-K // waves),
    }
    federation = _Federation(networks, data, parts, test_parts, algorithm, settings, config, device, workers)
    federation.train(checkpoint and Path(checkpoint), checkpoint_every, checkpoint_minutes, progress)
    return federation.runs()


@dataclass
class _Total:
    """What the waves of a round add up to, of S runs: delta (S, P), buffers (S, Q), losses (S,), sums (S, ...).

    ``kept``: what clients will keep once the round has ended, (the memory (S, N, C), runs, clients, rows).
    """

    delta: Tensor
    buffers: Tensor
    losses: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


class _Federation:
    """The state of S runs between rounds, and what happens to it in a round."""

    def __init__(
        self,
        networks: list[nn.Module],
        data: Data,
        parts: Sequence[Tensor],
        test_parts: Sequence[Tensor] | None,
        algorithm: Algorithm,
        settings: list[dict],
        config: dict,
        device: torch.device,
        workers: int,
    ):
        # A copy, because rounds change its stage and a caller's function may give a network it still needs.
        self.net, self.data, self.algorithm = copy.deepcopy(networks[0]), data.to(device), algorithm
        self.settings, self.config, self.device = settings, config, device
        self.radii = [algorithm.max_norm if s["clip"] is None else s["clip"] for s in settings]
        self.parts = [np.asarray(p.cpu() if isinstance(p, Tensor) else p) for p in parts]
        self.test_parts = test_parts and [torch.as_tensor(p, device=device) for p in test_parts]
        self.normalisation = (data.mean, data.std) if config["normalise"] else None
        self.layout = Layout(self.net)
        rows, buffers = zip(*(self.layout.read(net) for net in networks), strict=True)
        self.w, self.buffers = torch.stack(rows).to(device), torch.stack(buffers).to(device)
        self.start = _digest([self.w.cpu().view(torch.int32).flatten(), data.y_train])
        S, N = len(settings), len(parts)
        self.server_memory = {
            name: self.w.clone() if value is None else torch.full_like(self.w, value)
            for name, value in algorithm.server_memory.items()
        }
        self.client_memory = {name: self.w.new_zeros(S, N, self.layout.P) for name in algorithm.client_memory}
        # Columns that never leave a client, and what each client has in them.
        self.stays, self.buffers_stay = self.layout.columns(algorithm.local(self.net), device)
        self.home = self.w[:, None, self.stays].repeat(1, N, 1)
        self.buffers_home = self.buffers[:, None, self.buffers_stay].repeat(1, N, 1)
        self.units = self.layout.units().to(device)
        self.personal = bool(len(self.stays) or len(self.buffers_stay))
        counts = [torch.bincount(data.y_train[p].cpu(), minlength=data.num_classes) for p in parts]
        self.counts = torch.stack(counts).to(device, self.w.dtype)
        self.sizes = self.counts.sum(dim=1)
        self.history: list[list[dict]] = [[] for _ in settings]
        self.diverged: list[str | None] = [None] * S
        self.rows: Tensor | None = None
        self.t, self.seconds = 0, 0.0
        self.trainer = Trainer(
            self.net,
            algorithm.objective,
            algorithm.direction,
            plain=self._plain(),
            images=self.data.x_train,
            labels=self.data.y_train,
            normalisation=self.normalisation,
            padding=PADDING,
            engine=config["engine"],
            chunk=config["chunk"],
            workers=workers,
            autocast=torch.bfloat16 if config["precision"] == "bf16" else None,
        )

    def _plain(self) -> bool:
        """Whether a step is the gradient itself, with nothing to clip, to decay or to correct."""
        unused = not any(s["weight_decay"] for s in self.settings) and all(r is None for r in self.radii)
        return unused and self.algorithm.direction == Algorithm.direction

    # --- one round ---

    def round(self) -> None:
        """Train the sampled clients of every run that is still finite, wave by wave, then move the server."""
        began = self._live()
        clients, batches = self._draw(began)
        if self.algorithm.begin_round:
            self.trainer.switch(lambda net: self.algorithm.begin_round(net, self.t))
        total = _Total(torch.zeros_like(self.w), torch.zeros_like(self.buffers), self.w.new_zeros(len(self.w)))
        rows = torch.arange(clients.numel()).view(clients.shape)
        p = self.sizes[clients] / self.sizes[clients].sum(dim=1, keepdim=True)
        for some in slices(clients.shape[1], self.config["wave"]):
            here = [i for i, s in enumerate(began) if self.diverged[s] is None]  # not in an earlier wave either
            if not here:
                break
            try:
                self._wave(
                    torch.tensor(began, device=self.device)[here],
                    clients[here, some],
                    p[here, some],
                    batches.take(rows[here, some].flatten()),
                    total,
                )
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                alone = {
                    k for row in batches.size for k, n in zip(clients.flatten().tolist(), row, strict=True) if n == 1
                }
                raise ValueError(
                    f"client(s) {', '.join(map(str, sorted(alone)))} would train on a batch of one image "
                    f"in round {self.t + 1}, which has no variance for batch norm; change batch_size, use "
                    "local_steps instead of local_epochs, or take another norm"
                ) from error
        if self._live():
            self._move(torch.tensor(self._live(), device=self.device), total)
        self.t += 1

    def _live(self) -> list[int]:
        """The runs that are still finite."""
        return [s for s, message in enumerate(self.diverged) if message is None]

    def _wave(self, live: Tensor, clients: Tensor, p: Tensor, batches: Batches, total: _Total) -> None:
        """Train some clients of each run, (S, K) with weights p, and add what they send to the totals."""
        S, K = clients.shape
        run, client = live.repeat_interleave(K), clients.flatten()
        W, buffers = self._fresh_rows(run), self.buffers[run]
        W[:, self.stays], buffers[:, self.buffers_stay] = self.home[run, client], self.buffers_home[run, client]
        local = self._local(run, client, batches)
        losses = self.trainer(W, buffers, batches, local)
        self._add(live, p, local, W.view(S, K, -1), buffers.view(S, K, -1), losses.view(S, K), total)

    def _fresh_rows(self, run: Tensor) -> Tensor:
        """(R, P), the global vector of its run in every row; the same memory every time, which saves making it."""
        if self.rows is None or len(self.rows) < len(run):
            self.rows = self.w.new_empty(len(run), self.layout.P)
        self.trainer.map(
            lambda some: torch.index_select(self.w, 0, run[some], out=self.rows[some]), self._shares(len(run))
        )
        return self.rows[: len(run)]

    def _shares(self, count: int) -> list[slice]:
        """As many slices of ``range(count)`` as there are workers."""
        return slices(count, -(-count // len(self.trainer.losses)))

    def _draw(self, live: list[int]) -> tuple[Tensor, Batches]:
        """Who trains in this round, on which images, cropped and mirrored how: a function of (seed, round) alone."""
        drawn = [self._draw_run(np.random.default_rng([self.settings[s]["seed"], self.t])) for s in live]
        clients = torch.from_numpy(np.stack([c for c, _ in drawn])).to(self.device)
        views = 2 if self.algorithm.view else 1
        steps = [[np.repeat(batch, views) for batch in batches] for _, rows in drawn for batches in rows]
        T, B = max(map(len, steps)), max(len(b) for row in steps for b in row)
        index = np.zeros((len(steps), T, B), np.int64)
        for r, row in enumerate(steps):
            for t, batch in enumerate(row):
                index[r, t, : len(batch)] = batch
        size = [[len(row[t]) if t < len(row) else 0 for row in steps] for t in range(T)]
        return clients, Batches(
            torch.from_numpy(index).to(self.device),
            size,
            *self._draw_augmentation(live, index.shape, size),
            self._draw_views(live, index.shape, size),
        )

    def _draw_run(self, rng: np.random.Generator) -> tuple[np.ndarray, list[list[np.ndarray]]]:
        N, K, c = len(self.parts), self.config["clients_per_round"], self.config
        clients = np.arange(N) if K == N else np.sort(rng.choice(N, K, replace=False))
        return clients, [
            local_batches(
                rng, self.parts[k], c["batch_size"], local_steps=c["local_steps"], local_epochs=c["local_epochs"]
            )
            for k in clients
        ]

    def _draw_augmentation(
        self, live: list[int], shape: tuple[int, int, int], sizes: list[list[int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Where each image is cropped, and whether it is mirrored; ``shape`` (R, T, B) is that of the batches."""
        if self.config["augment"] is None:
            return None, None
        shift, flip = np.full((*shape, 2), PADDING), np.zeros(shape, bool)
        for rows, own, rng in self._own(live, sizes, stream=1):
            if "crop" in self.config["augment"]:
                shift[rows, : own[1], : own[2]] = rng.integers(0, 2 * PADDING + 1, (*own, 2))
            if "flip" in self.config["augment"]:
                flip[rows, : own[1], : own[2]] = rng.random(own) < 0.5
        return torch.from_numpy(shift).to(self.device), torch.from_numpy(flip).to(self.device)

    def _draw_views(self, live: list[int], shape: tuple[int, int, int], sizes: list[list[int]]) -> Tensor | None:
        """(R, T, B, 7), how each image of the batches is distorted."""
        if self.algorithm.view is None:
            return None
        views = np.zeros((*shape, 7), np.float32)
        for rows, own, rng in self._own(live, sizes, stream=2):
            views[rows, : own[1], : own[2]] = self.algorithm.view(rng, own)
        return torch.from_numpy(views).to(self.device)

    def _own(
        self, live: list[int], sizes: list[list[int]], stream: int
    ) -> Iterator[tuple[slice, tuple[int, int, int], np.random.Generator]]:
        """For each run: its rows of the cohort, the shape (K, T, B) it has when alone, and a generator of its own.

        The shape, because other runs of the sweep must not change how many numbers a run draws.
        """
        K = len(sizes[0]) // len(live)
        for i, s in enumerate(live):
            rows = slice(K * i, K * i + K)
            own = [row[rows] for row in sizes if any(row[rows])]
            rng = np.random.default_rng([self.settings[s]["seed"], self.t, stream])
            yield rows, (K, len(own), max(map(max, own))), rng

    def _local(self, run: Tensor, client: Tensor, batches: Batches) -> Local:
        def column(values: list[float | None]) -> Tensor:
            own = [math.inf if values[s] is None else values[s] for s in run.tolist()]
            return torch.tensor(own, dtype=self.w.dtype, device=self.device)[:, None]

        lrs, decays = ([s[name] for s in self.settings] for name in ("lr", "weight_decay"))
        steps = torch.tensor([sum(s > 0 for s in row) for row in zip(*batches.size, strict=True)], device=self.device)
        return Local(
            run,
            client,
            lr=column(lrs) * self.config["lr_decay"] ** self.t,
            steps=steps[:, None].to(self.w.dtype),
            counts=self.counts[client],
            global_rows=self.w,
            units=self.units,
            weight_decay=column(decays) * self.algorithm.annealing**self.t if any(decays) else None,
            clip=column(self.radii) if any(self.radii) else None,
            mu=None if self.algorithm.mu is None else column([s["mu"] for s in self.settings]),
            server_rows=self.server_memory,
            client_rows={n: m[run, client] for n, m in self.client_memory.items()},
        )

    def _add(
        self, live: Tensor, p: Tensor, local: Local, W: Tensor, buffers: Tensor, losses: Tensor, total: _Total
    ) -> None:
        """Add what the clients of a wave send to the totals; p, losses (S, K), W (S, K, P), buffers (S, K, Q)."""
        S, K, P = W.shape
        clients = local.client.view(S, K)
        fine = self._finite(live, clients, W, losses)
        if not fine.any():
            return
        if not fine.all():
            live, clients, p, W = live[fine], clients[fine], p[fine], W[fine]
            buffers, losses, local = buffers[fine], losses[fine], local.take(fine.repeat_interleave(K))
        sent = {}
        if self.algorithm.remember:
            for name, new in self.algorithm.remember(W.reshape(-1, P), local).items():
                sent[name] = (new - local.client_rows[name]).view(len(live), K, P)
                total.kept.append((self.client_memory[name], live, clients, new.view(len(live), K, P)))
        total.kept += [
            (self.home, live, clients, W[..., self.stays]),
            (self.buffers_home, live, clients, buffers[..., self.buffers_stay]),
        ]
        w = self.w[live]
        deltas, delta = W, torch.empty_like(w)  # in place: nobody needs the clients' weights any more
        W[..., self.stays] = w[:, None, self.stays]

        def subtract_and_average(columns: slice) -> None:
            deltas[..., columns].sub_(w[:, None, columns])
            delta[:, columns] = torch.einsum("sk,skp->sp", p, deltas[..., columns])

        self.trainer.map(subtract_and_average, slices(P, COLUMNS if self.device.type == "cpu" else P))
        total.delta.index_add_(0, live, delta)
        total.buffers.index_add_(0, live, torch.einsum("sk,skq->sq", p, buffers))
        total.losses.index_add_(0, live, (p * losses).sum(dim=1))
        share = self.sizes[clients] / self.sizes.sum()
        for name, value in self.algorithm.collect(Reports(w, deltas, p, share, sent)).items():
            of_all = total.sums.setdefault(name, value.new_zeros(len(self.w), *value.shape[1:]))
            of_all.index_add_(0, live, value)

    def _move(self, live: Tensor, total: _Total) -> None:
        """Let the server of each run move, and its clients keep what is theirs."""
        for memory, runs, clients, rows in total.kept:
            on = torch.isin(runs, live)  # a run may have diverged in a later wave
            memory[runs[on, None], clients[on]] = rows[on]
        w, memory = self.w[live], {name: rows[live] for name, rows in self.server_memory.items()}
        sums = {name: value[live] for name, value in total.sums.items()}
        update = Update(total.delta[live], sums, memory, len(self.parts), self.t)
        moved, frozen = self.algorithm.server(w, update), self.trainer.frozen
        self.w[live] = moved if frozen is None else torch.where(frozen, w, moved)  # momentum must not move them either
        for name, rows in memory.items():
            self.server_memory[name][live] = rows
        self.buffers[live] = total.buffers[live]
        self.losses = dict(zip(live.tolist(), total.losses[live].tolist(), strict=True))

    def _finite(self, live: Tensor, clients: Tensor, W: Tensor, losses: Tensor) -> Tensor:
        """(S,) which runs are still finite; the others are marked as diverged and keep the state they had."""
        sums = torch.cat(self.trainer.map(lambda some: W[:, some].sum(dim=2), self._shares(W.shape[1])), dim=1)
        bad = ~(sums.isfinite() & losses.isfinite())
        for s, row, who in zip(live.tolist(), bad.tolist(), clients.tolist(), strict=True):
            if any(row):
                names = ", ".join(str(k) for k, b in zip(who, row, strict=True) if b)
                self.diverged[s] = (
                    f"{self.algorithm.name} with {_describe(self.settings[s])} diverged in round "
                    f"{self.t + 1}: weights or loss not finite on client(s) {names}"
                )
                warnings.warn(self.diverged[s] + "; its history ends there, other runs go on", stacklevel=2)
        return ~bad.any(dim=1)

    # --- evaluation ---

    def evaluate(self) -> None:
        """Add a line to the history of every live run."""
        w = self.w if self.algorithm.readout is None else self.algorithm.readout(self.w, self.server_memory)
        self._look_back()
        down, up = self._bytes()
        for s in range(len(self.settings)):
            if self.diverged[s] is None:
                pooled, by_client = self._accuracies(s, w[s]) if self.algorithm.labels else (math.nan, [])
                mean = sum(by_client) / len(by_client) if by_client else math.nan
                self.history[s].append(
                    {
                        "round": self.t,
                        "loss": self.losses[s],
                        "accuracy": pooled,
                        "client_accuracy": mean,
                        "bytes_down": down,
                        "bytes_up": up,
                        "clients": by_client,
                    }
                )

    def _look_back(self) -> None:
        """Put the network into the stage of the last round: what was frozen, which blocks were there."""
        if self.algorithm.begin_round and self.t:
            self.algorithm.begin_round(self.net.train().requires_grad_(True), self.t - 1)

    def _bytes(self) -> tuple[int, int]:
        """What the round's clients together get (all but what is theirs or absent) and send (what learned)."""
        layout, still = self.layout, torch.zeros(self.layout.P, dtype=torch.bool)
        still[self.stays.cpu()] = True
        absent, _ = layout.columns(self.algorithm.absent(self.net), torch.device("cpu"))
        down, frozen = still.clone(), layout.frozen(self.net)
        down[absent] = True
        up = still if frozen is None else still | frozen
        buffers = layout.Q - len(self.buffers_stay)
        return tuple(
            4 * self.config["clients_per_round"] * (self.algorithm.messages * int((~out).sum()) + buffers)
            for out in (down, up)
        )

    def _accuracies(self, s: int, w: Tensor) -> tuple[float, list[float]]:
        """Pooled accuracy, and each client's own.

        Where parts of the network stay on the clients there is no global model: each client's own network is judged
        on its own test images (on the whole test set without ``test_parts``), and the pooled accuracy counts those.
        """
        if not self.personal:
            right = self._correct(w, self.buffers[s])
            return right.mean().item(), [right[p].mean().item() for p in self.test_parts or ()]
        rights = []
        for k in range(len(self.parts)):
            row, buffers = w.clone(), self.buffers[s].clone()
            row[self.stays], buffers[self.buffers_stay] = self.home[s, k], self.buffers_home[s, k]
            rights.append(self._correct(row, buffers, self.test_parts[k] if self.test_parts else None))
        return torch.cat(rights).mean().item(), [r.mean().item() for r in rights]

    def _correct(self, w: Tensor, buffers: Tensor, index: Tensor | None = None) -> Tensor:
        """(N,), 1.0 for each test image that the network in row ``w`` classifies correctly."""
        net = copy.deepcopy(self.net).to(self.device).eval()
        self.layout.bind(net, w, buffers)
        x, y = self.data.x_test, self.data.y_test
        x, y = (x, y) if index is None else (x[index], y[index])

        def predict(images: Tensor) -> Tensor:
            with torch.no_grad(), self.trainer.precision():  # both belong to a thread
                return net(prepare(images, *(self.normalisation or ()), dtype=w.dtype)).argmax(dim=1)

        predictions = self.trainer.map(predict, x.split(100 if self.device.type == "cpu" else 2000))
        return (torch.cat(predictions) == y).to(w.dtype)

    # --- all rounds ---

    def train(self, checkpoint: Path | None, every: int | None, minutes: float, progress: bool | str) -> None:
        """All rounds, from the checkpoint if there is one."""
        if checkpoint and checkpoint.exists():
            self._load(checkpoint)
        start, saved, before = time.monotonic(), time.monotonic(), self.seconds
        rounds = self.config["rounds"]
        label = progress if isinstance(progress, str) else self.algorithm.name
        bar = tqdm(
            total=rounds,
            initial=self.t,
            desc=label,
            unit="round",
            leave=False,
            disable=not progress or cohort.beside_others,
        )
        # Sums over clients are short: threads that wait for one another there cost more than they save.
        with bar, one_thread(self.device):
            while self.t < rounds and not all(self.diverged):
                self.round()
                if self.t % self.config["evaluate_every"] == 0 or self.t == rounds:
                    self.evaluate()
                bar.update()
                self.seconds = before + time.monotonic() - start
                due = every is not None and self.t % every == 0 or time.monotonic() - saved > 60 * minutes
                if checkpoint and (due or self.t == rounds):
                    self._save(checkpoint)
                    saved = time.monotonic()

    def runs(self) -> list[Run]:
        """The runs as they stand."""
        columns = ["round", "loss", "accuracy", "client_accuracy", "bytes_down", "bytes_up"]
        self._look_back()  # a finished checkpoint was read without a round
        # Only what a model needs: a Run that is kept must not keep the data and every client's row with it.
        start, layout, w, buffers = self.net, self.layout, self.w.cpu(), self.buffers.cpu()
        home, buffers_home = self.home.cpu(), self.buffers_home.cpu()
        stays, buffers_stay = self.stays.cpu(), self.buffers_stay.cpu()

        def network(s: int, client: int | None) -> nn.Module:
            net, row, own = copy.deepcopy(start), w[s].clone(), buffers[s].clone()
            if client is not None:
                row[stays], own[buffers_stay] = home[s, client], buffers_home[s, client]
            layout.bind(net, row, own)
            return net.eval().requires_grad_(True)

        def by_client(lines: list[dict]) -> pd.DataFrame:
            rounds = pd.Index([line["round"] for line in lines], name="round", dtype=int)
            return pd.DataFrame([line["clients"] for line in lines], index=rounds, dtype=float)

        return [
            Run(
                {**self.config, **self.settings[s]},
                pd.DataFrame(self.history[s], columns=columns),
                by_client(self.history[s]),
                self.diverged[s],
                self.seconds,
                lambda client, s=s: network(s, client),
            )
            for s in range(len(self.settings))
        ]

    # --- checkpoints ---

    def _identity(self) -> dict:
        """What must agree for a checkpoint to be continued."""
        # more rounds may be asked for, and smaller waves
        free = {name: value for name, value in self.config.items() if name not in ("rounds", "wave")}
        return {
            **free,
            "runs": self.settings,
            "start": self.start,
            "torch": str(torch.__version__),
            "network": {n: list(s) for n, s in {**self.layout.parameters, **self.layout.buffers}.items()},
        }

    def _state(self) -> dict:
        return {
            "t": self.t,
            "seconds": self.seconds,
            "w": self.w,
            "buffers": self.buffers,
            "home": self.home,
            "buffers_home": self.buffers_home,
            "server_memory": self.server_memory,
            "client_memory": self.client_memory,
            "history": self.history,
            "diverged": self.diverged,
        }

    def _save(self, path: Path) -> None:
        """Write beside the old checkpoint, then replace it: a crash or a full disk leaves the old one whole."""
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"identity": self._identity(), "state": self._state()}, part)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            part.unlink(missing_ok=True)
            kept = "the one before it is kept" if path.exists() else "there is none yet"
            warnings.warn(
                f"could not write checkpoint {path} after round {self.t}: {error}; {kept}, training goes on",
                stacklevel=2,
            )

    def _load(self, path: Path) -> None:
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
            theirs, state = saved["identity"], saved["state"]
        except Exception as error:
            raise ValueError(f"checkpoint {path} cannot be read ({error}); delete it to start anew") from error
        mine = self._identity()
        different = [
            f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} here"
            for key in sorted({*mine, *theirs})
            if theirs.get(key) != mine.get(key)
        ]
        if different:
            raise ValueError(
                f"checkpoint {path} belongs to another configuration ({'; '.join(different)}); "
                "give this run another file, or delete that one to start anew"
            )
        if state["t"] > self.config["rounds"]:
            raise ValueError(
                f"checkpoint {path} has {state['t']} rounds, more than the {self.config['rounds']} asked for"
            )
        for name, value in state.items():
            setattr(self, name, value)
        every = self.config["evaluate_every"]  # the last round of a shorter run is no line of a longer one
        last = self.config["rounds"]
        self.history = [
            [line for line in lines if line["round"] % every == 0 or line["round"] == last] for lines in self.history
        ]


def local_batches(
    rng: np.random.Generator,
    images: np.ndarray,
    batch_size: int,
    *,
    local_steps: int | None = None,
    local_epochs: int | None = None,
) -> list[np.ndarray]:
    """The batches of one client in one round, in order.

    Round t of a run draws from ``np.random.default_rng([seed, t])``: first the cohort, then the batches of each of its
    clients in turn. A loop that does the same trains on the same images.

    Args:
        images: positions of the client's images in the training set.
        local_steps, local_epochs: exactly one of them; see :func:`sweep`.

    Returns:
        Arrays of positions.
    """
    n = len(images)
    if local_steps is None:
        shuffled = [rng.permutation(images) for _ in range(local_epochs)]
        return [order[a : a + batch_size] for order in shuffled for a in range(0, n, batch_size)]
    B = min(batch_size, n)
    per_pass = n // B
    shuffled = [rng.permutation(images) for _ in range(-(-local_steps // per_pass))]
    return [order[B * i : B * (i + 1)] for order in shuffled for i in range(per_pass)][:local_steps]


def _device(wanted: str | torch.device | None) -> torch.device:
    """The device asked for, or CUDA where there is one."""
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or another name torch knows, got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {wanted!r} was asked for, but torch finds no CUDA GPU here; leave it out for the CPU")
    return device


def _networks(model: nn.Module | Callable[[], nn.Module], seeds: list[int], dtype: torch.dtype) -> list[nn.Module]:
    """The initial network of every run: the same for equal seeds."""
    if isinstance(model, nn.Module):
        return [copy.deepcopy(model).cpu().to(dtype)] * len(seeds)
    made = {}
    for seed in seeds:
        if seed not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made[seed] = model().to(dtype)
    return [made[seed] for seed in seeds]


def _choose_engine(net: nn.Module, device: torch.device, data: Data, rows: int) -> str:
    """Stacked where launching an operation costs more than doing it: small images and few weights on a CPU.

    There vmap costs as much as two or three rows.
    """
    weights = sum(p.numel() for p in net.parameters())
    small = weights < 100_000 and data.x_train[0].numel() <= 256 and rows > 2
    return "stacked" if device.type == "cuda" or small else "clients"


def _fitting(net: nn.Module, algorithm: Algorithm, runs: int, clients: int, device: torch.device) -> int:
    """How many clients of each run the free memory allows to train together, 1 at least.

    Warns where it does not even hold what all clients keep between rounds.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    else:
        free = psutil.virtual_memory().available
    row = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    kept = runs * clients * row * len(algorithm.client_memory)
    if kept > free:
        warnings.warn(
            f"{algorithm.name} keeps {kept / 1e9:.2g} GB for {clients} clients between rounds, and the free "
            f"memory of {device} is {free / 1e9:.2g} GB: it may not suffice; take fewer clients, fewer runs "
            "at once or a smaller network",
            stacklevel=3,
        )
    return max(1, (free - kept) // (SHARE * runs * row * (1 + len(algorithm.client_memory))))


def _digest(parts: Sequence[Tensor] | None) -> str | None:
    """A fingerprint of a partition."""
    if parts is None:
        return None
    h = hashlib.sha256()
    for p in parts:
        h.update(np.ascontiguousarray(torch.as_tensor(p).cpu().numpy(), np.int64).tobytes() + b"|")
    return h.hexdigest()[:16]


def _plain_number(value: object) -> object:
    """A number of numpy or torch as Python's own, which a checkpoint can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) or isinstance(value, Tensor) and value.dim() == 0 else value


def _describe(setting: dict) -> str:
    told = {name: value for name, value in setting.items() if value not in (None, 0.0) or name == "seed"}
    return ", ".join(f"{name} {value:g}" for name, value in told.items())


def _check(
    data: Data,
    parts: Sequence[Tensor],
    test_parts: Sequence[Tensor] | None,
    settings: list[dict],
    K: int,
    **numbers: float | None,
) -> None:
    """Refuse what makes no sense, with the name of the argument, what it got and what it accepts."""
    if (numbers["local_steps"] is None) == (numbers["local_epochs"] is None):
        raise ValueError("give either local_steps or local_epochs, and not both")
    for name in (
        "rounds",
        "batch_size",
        "local_steps",
        "local_epochs",
        "evaluate_every",
        "chunk",
        "wave",
        "workers",
        "checkpoint_every",
    ):
        value = numbers[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if not (math.isfinite(numbers["lr_decay"]) and 0 < numbers["lr_decay"] <= 1):
        raise ValueError(f"lr_decay must lie in (0, 1], got {numbers['lr_decay']!r}")
    if not settings:
        raise ValueError("lr, weight_decay, clip, mu and seed must each hold at least one value")
    for name, value in ((name, value) for s in settings for name, value in s.items()):
        given = value is not None or name not in ("clip", "mu")
        if given and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            raise ValueError(f"{name} must be a number, got {value!r}")
    for s in settings:
        if not (math.isfinite(s["lr"]) and s["lr"] > 0):
            raise ValueError(f"lr must be positive and finite, got {s['lr']!r}")
        if not (math.isfinite(s["weight_decay"]) and s["weight_decay"] >= 0):
            raise ValueError(f"weight_decay must be finite and not negative, got {s['weight_decay']!r}")
        if s["clip"] is not None and not s["clip"] > 0:
            raise ValueError(f"clip must be positive, or None for no clipping, got {s['clip']!r}")
        if s["mu"] is not None and not (math.isfinite(s["mu"]) and s["mu"] >= 0):
            raise ValueError(f"mu must be finite and not negative, or None for the method's own, got {s['mu']!r}")
        if not isinstance(s["seed"], int) or s["seed"] < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {s['seed']!r}")
    if not len(parts):
        raise ValueError("parts must hold the images of at least one client, got none")
    if not 1 <= K <= len(parts):
        raise ValueError(f"clients_per_round must lie between 1 and the number of clients, {len(parts)}; got {K}")
    for name, split, images in (("parts", parts, data.x_train), ("test_parts", test_parts, data.x_test)):
        _check_parts(name, split, len(images))
    if test_parts is not None and len(test_parts) != len(parts):
        raise ValueError(
            f"test_parts must hold one index tensor per client, got {len(test_parts)} for {len(parts)} clients"
        )


def _check_views(name: str, batch_size: int, sizes: list[int], by_epochs: bool) -> None:
    """Refuse batches of one image, whose two views find each other without looking."""
    lone = [k for k, n in enumerate(sizes) if min(n, batch_size) < 2 or by_epochs and n % batch_size == 1]
    if lone:
        raise ValueError(
            f"{name!r} compares an image with the others of its batch, but with batch_size {batch_size} "
            f"client(s) {', '.join(map(str, lone))} would have a batch of one image; take another "
            "batch_size of at least 2, or local_steps instead of local_epochs"
        )


def _check_network(net: nn.Module, data: Data, labels: bool = True) -> None:
    """Refuse a network that does not fit the images or, if there are ``labels``, the classes."""
    dtype, one = next(net.parameters()).dtype, torch.zeros(1, *data.shape, dtype=torch.uint8)
    try:
        with torch.no_grad():
            logits = copy.deepcopy(net).eval()(prepare(one, dtype=dtype))
    except RuntimeError as error:
        kind = "windows" if data.is_text else "images"
        raise ValueError(
            f"the network does not take {kind} of shape {data.shape}, as {data.name!r} has: {error}"
        ) from error
    if labels and logits.shape != (1, data.num_classes):
        raise ValueError(
            f"the network gives {logits.shape[-1]} logits, but {data.name!r} has {data.num_classes} classes"
        )


def _check_parts(name: str, parts: Sequence[Tensor] | None, images: int) -> None:
    for k, part in enumerate(parts or ()):
        part = torch.as_tensor(part)
        if not part.numel():
            raise ValueError(f"{name} leaves client {k} without images")
        if part.dim() != 1 or part.is_floating_point() or part.min() < 0 or part.max() >= images:
            raise ValueError(f"{name}[{k}] must be a 1-D tensor of positions from 0 to {images - 1}")

"""The rounds: draw clients, train them, add up, move the server, evaluate; the result is a :class:`Run`.

A sweep is a cohort too. Runs that differ only in their seed or in a number change no shape, so their clients are more
rows of the same matrix: S runs of K clients are trained as S * K rows.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fedlib import checkpoint as checkpoints
from fedlib import checks
from fedlib import workers as cpu
from fedlib.algorithms import Algorithm, check_setting, clip, decay, fedavg
from fedlib.client import Clients, Kept
from fedlib.cohort import Batches, Layout, Stage, Stages, Trainer
from fedlib.data import Data, prepare
from fedlib.messages import Down, Totals
from fedlib.schedule import AUGMENTATIONS, PADDING, Schedule
from fedlib.server import Server
from fedlib.workers import Workers, cores, one_thread, slices

ENGINES = ("auto", "clients", "stacked")
PRECISIONS = ("float32", "tf32", "bf16", "float64")
CHUNK = 32  # rows stacked together on a CPU; the same for any number of workers, which then cannot change a bit
SHARE = 16  # rows of a wave take this part of free memory at most: training needs several copies, and activations


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
    **options,
) -> Run:
    """One federated training. See :func:`sweep` for the arguments; here each of these is a single value."""
    axes = {"lr": [lr], "seed": [seed], "weight_decay": [weight_decay], "clip": [clip]}
    return sweep(model, data, parts, algorithm, **axes, **options)[0]


def sweep(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    parts: Sequence[Tensor],
    algorithm: Algorithm | None = None,
    *,
    rounds: int,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    checkpoint_minutes: float = 5.0,
    progress: bool | str = True,
    **options,
) -> list[Run]:
    """Every combination of ``lr``, ``weight_decay``, ``clip``, ``settings`` and ``seed``, trained together.

    Args:
        model, data, parts, algorithm, options: see :class:`Simulation`, whose every argument is accepted.
        rounds: communication rounds T.
        evaluate_every: rounds between evaluations; the last round is always evaluated. Default: 20 times in a run.
        checkpoint: a file. It is written every ``checkpoint_every`` rounds (if given) and every
            ``checkpoint_minutes``; when it exists, the sweep continues from it and gives the result that an
            uninterrupted one gives, bit for bit on a CPU.
        progress: show a progress bar; a string is its label.

    Returns:
        One :class:`Run` for each combination, in the order of
        ``itertools.product(lr, weight_decay, clip, *settings.values(), seed)``.

    Raises:
        ValueError: for an argument that makes no sense, or a checkpoint that belongs to another configuration.
    """
    given = {"rounds": rounds, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    rounds, evaluate_every, checkpoint_every = _whole(**given)
    sim = Simulation(model, data, parts, algorithm, **options)
    every = evaluate_every or max(1, rounds // 20)
    sim.config |= {"rounds": rounds, "evaluate_every": every}
    file = None if checkpoint is None else Path(checkpoint)
    if file and file.exists():
        sim.load(file)
        sim.keep_lines(lambda t: t % every == 0 or t == rounds)  # the last round of a shorter run is no line here
        if sim.t > rounds:
            raise ValueError(f"checkpoint {file} has {sim.t} rounds, more than the {rounds} asked for")
    label = progress if isinstance(progress, str) else sim.algorithm.name
    hidden = not progress or cpu.beside_others
    started, saved, before = time.monotonic(), time.monotonic(), sim.seconds
    with tqdm(total=rounds, initial=sim.t, desc=label, unit="round", leave=False, disable=hidden) as bar:
        while sim.t < rounds and sim.live:
            sim.step()
            if sim.t % every == 0 or sim.t == rounds:
                sim.evaluate()
            bar.update()
            sim.seconds = before + time.monotonic() - started
            due = (
                checkpoint_every and sim.t % checkpoint_every == 0 or time.monotonic() - saved > 60 * checkpoint_minutes
            )
            if file and (due or sim.t == rounds):
                sim.save(file)
                saved = time.monotonic()
    return sim.runs()


class Simulation:
    """S federations side by side on one machine, round by round.

        >>> import fedlib as fl
        >>> data = fl.data.load("digits")
        >>> parts = fl.partition.n_class(data.y_train, clients=10, n=1)
        >>> sim = fl.Simulation(lambda: fl.models.mlp(data.shape, 10), data, parts, lr=[0.1, 0.3], local_steps=5)
        >>> for _ in range(3):
        ...     sim.step()
        >>> sim.evaluate()
        >>> [len(run.history) for run in sim.runs()]
        [1, 1]

    Args:
        model: a function that makes the network, called once for every seed after ``torch.manual_seed(seed)``; or a
            module, whose weights every run then starts from.
        data: what is learned.
        parts: one index tensor per client into the training images.
        algorithm: a method; FedAvg when left out.
        lr, weight_decay, clip, seed: the values to combine; ``clip`` is the largest norm of a client's gradient (of
            gradient and weight decay together under :func:`fedlib.algorithms.fednar`, whose ``max_norm`` it replaces).
        settings: the values to combine of the method's own numbers, such as ``{"mu": [0.0, 0.01]}``, and of
            ``annealing``: the weight decay of round t is ``weight_decay * annealing**t``.
        batch_size: images in a local step.
        local_steps: steps per round and client. Batches run on from one shuffling of the client's images to the next,
            all of them full (or as large as the client).
        local_epochs: passes per round over the client's images instead, the last batch of each as large as is left.
        clients_per_round: size of the cohort, drawn without replacement; all clients when left out.
        lr_decay: the learning rate of round t is ``lr * lr_decay**t``, t = 0, 1, ...
        augment: ``"crop"`` (zero padding of 4), ``"flip"``, ``"flip+crop"`` or None; per image.
        normalise: subtract ``data.mean`` and divide by ``data.std``; otherwise images lie in [0, 1].
        test_parts: one index tensor per client into the test images, for per-client accuracy.
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

    Attributes:
        t: rounds done.
        clients, server, schedule: the two sides of a round, and who trains in it.
        config: everything that determines the result of all runs; ``settings`` the numbers of each.
        diverged: of each run None, or what went wrong when.

    Raises:
        ValueError: for an argument that makes no sense.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Data,
        parts: Sequence[Tensor],
        algorithm: Algorithm | None = None,
        *,
        lr: Sequence[float],
        seed: Sequence[int] = (0,),
        weight_decay: Sequence[float] = (0.0,),
        clip: Sequence[float | None] = (None,),
        settings: Mapping[str, Sequence[float]] | None = None,
        batch_size: int = 32,
        local_steps: int | None = None,
        local_epochs: int | None = None,
        clients_per_round: int | None = None,
        lr_decay: float = 1.0,
        augment: str | None = None,
        normalise: bool = False,
        test_parts: Sequence[Tensor] | None = None,
        device: str | torch.device | None = None,
        engine: str = "auto",
        chunk: int | None = None,
        wave: int | None = None,
        workers: int | None = None,
        precision: str = "float32",
    ):
        self.algorithm = algorithm or fedavg()
        self.axes = _axes(self.algorithm, settings, lr=lr, weight_decay=weight_decay, clip=clip, seed=seed)
        self.settings = _combine(self.algorithm, self.axes)
        K = len(parts) if clients_per_round is None else clients_per_round
        given = {"batch_size": batch_size, "local_steps": local_steps, "local_epochs": local_epochs, "chunk": chunk}
        batch_size, local_steps, local_epochs, chunk, wave, workers = _whole(**given, wave=wave, workers=workers)
        if (local_steps is None) == (local_epochs is None):
            raise ValueError("give either local_steps or local_epochs, and not both")
        if not (math.isfinite(lr_decay) and 0 < lr_decay <= 1):
            raise ValueError(f"lr_decay must lie in (0, 1], got {lr_decay!r}")
        _check_clients(data, parts, test_parts, K)
        _check_words(data, augment=augment, normalise=normalise, engine=engine, precision=precision)
        self.device = _device(device)
        if precision == "tf32" and self.device.type != "cuda":
            raise ValueError(f"precision 'tf32' needs a CUDA device, this run is on {self.device.type!r}")
        self.workers = Workers(_threads(workers, self.device), self.device)
        dtype = torch.float64 if precision == "float64" else torch.float32
        networks = _networks(model, [s["seed"] for s in self.settings], dtype)
        _check_network(networks[0], data, self.algorithm.objective.labels)
        if self.algorithm.objective.view:
            _check_views(self.algorithm.name, data, batch_size, [len(p) for p in parts], local_steps is None)
        waves = -(-K // (wave or _fitting(networks[0], self.algorithm, len(self.settings), len(parts), self.device)))
        rows = len(self.settings) * K
        self.config = {
            "algorithm": self.algorithm.name,
            "settings": dict(self.algorithm.settings),
            "data": data.name,
            "train_images": len(data.x_train),
            "test_images": len(data.x_test),
            "parts": _digest(parts),
            "test_parts": _digest(test_parts),
            "clients": len(parts),
            "clients_per_round": int(K),
            "batch_size": batch_size,
            "local_steps": local_steps,
            "local_epochs": local_epochs,
            "lr_decay": lr_decay,
            "augment": augment,
            "normalise": normalise,
            "precision": precision,
            "device": self.device.type,
            "engine": _choose_engine(networks[0], self.device, data, rows) if engine == "auto" else engine,
            "chunk": chunk or (rows if self.device.type == "cuda" else min(rows, CHUNK)),
            "wave": -(-K // waves),
        }
        self._make_sides(networks, data, parts)
        self.test_parts = test_parts and [torch.as_tensor(p, device=self.device) for p in test_parts]
        self.history: list[list[dict]] = [[] for _ in self.settings]
        self.diverged: list[str | None] = [None] * len(self.settings)
        self.losses = dict.fromkeys(range(len(self.settings)), math.nan)
        self.t, self.seconds = 0, 0.0

    def _make_sides(self, networks: list[nn.Module], data: Data, parts: Sequence[Tensor]) -> None:
        """Schedule, clients and server of the federations that ``config`` describes."""
        algorithm, config = self.algorithm, self.config
        # A copy, because rounds change its stage and a caller's function may give a network it still needs.
        self.net, self.data = copy.deepcopy(networks[0]), data.to(self.device)
        self.layout = Layout(self.net)
        pairs = zip(*(self.layout.read(net) for net in networks), strict=True)
        w, buffers = (torch.stack(some).to(self.device) for some in pairs)
        self.start = _digest([w.cpu().view(torch.int32).flatten(), data.y_train])
        self.stages = Stages(self.net, algorithm.travels, self.device)
        self.normalisation = (data.mean, data.std) if config["normalise"] else None
        trainer = Trainer(
            self.net,
            algorithm.objective.loss,
            self._direction(),
            images=self.data.x_train,
            labels=self.data.y_train,
            normalisation=self.normalisation,
            padding=PADDING,
            engine=config["engine"],
            chunk=config["chunk"],
            workers=self.workers,
            autocast=torch.bfloat16 if config["precision"] == "bf16" else None,
        )
        counts = [torch.bincount(data.y_train[p].cpu(), minlength=data.num_classes) for p in parts]
        counts = torch.stack(counts).to(self.device, w.dtype)
        self.clients = Clients(
            trainer, algorithm, counts, w, buffers, self.settings, self.stages(0), config["lr_decay"]
        )
        own = [{name: s[name] for name in algorithm.numbers} for s in self.settings]
        self.server = Server(algorithm.server, w, buffers, own, len(parts), algorithm.shared)
        drawn = ("clients_per_round", "batch_size", "local_steps", "local_epochs", "augment")
        self.schedule = Schedule(
            [np.asarray(p.cpu() if isinstance(p, Tensor) else p) for p in parts],
            **{name: config[name] for name in drawn},
            view=algorithm.objective.view,
            device=self.device,
        )

    def _direction(self) -> tuple:
        """The row transformations of a step without those that would do nothing: without any, a step is faster."""
        unused = [f for f, name in ((clip, "clip"), (decay, "weight_decay")) if not any(s[name] for s in self.settings)]
        return tuple(f for f in (*self.algorithm.correct, *self.algorithm.step) if f not in unused)

    @property
    def live(self) -> list[int]:
        """The runs that are still finite."""
        return [s for s, message in enumerate(self.diverged) if message is None]

    # --- one round ---

    def step(self) -> None:
        """One round: train the sampled clients of every run that is still finite, wave by wave, then move the server.

        A run that diverges is marked, with a warning, and keeps the state it had before.
        """
        if not self.live:
            return
        # Sums over clients are short: threads that wait for one another there cost more than they save.
        with one_thread(self.device):
            began, stage, down = self.live, self.stages(self.t), self.server.begin(self.t)
            self.clients.enter(stage)
            clients, batches = self.schedule.draw([self.settings[s]["seed"] for s in began], self.t)
            totals, kept = Totals.none(down.w, down.buffers), Kept()
            examples = self.clients.sizes[clients].sum(dim=1, keepdim=True)
            rows = torch.arange(clients.numel()).view(clients.shape)
            for some in slices(clients.shape[1], self.config["wave"]):
                here = [i for i, s in enumerate(began) if self.diverged[s] is None]  # not in an earlier wave either
                if not here:
                    break
                runs = torch.tensor(began, device=self.device)[here]
                own = batches.take(rows[here, some].flatten())
                kept += self._wave(runs, clients[here, some], own, examples[here], down, totals)
            if self.live:
                self.server.move(totals, self.live, self.t, frozen=stage.frozen)
                self.clients.keep(kept, torch.tensor(self.live, device=self.device))
                self.losses = dict(enumerate(totals.losses.tolist()))
            self.t += 1

    def _wave(
        self, runs: Tensor, clients: Tensor, batches: Batches, examples: Tensor, down: Down, totals: Totals
    ) -> Kept:
        """Train some clients of each run, and add what they send to the totals."""
        try:
            up, kept, finite = self.clients.train(runs, clients, batches, down)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise self._lone(clients, batches) from error
        fine = self._mark(runs, clients, finite)
        if fine.any():
            if not fine.all():
                runs, examples, up = runs[fine], examples[fine], up.take(fine)
            collect = self.algorithm.server.collect
            more = Totals.of(up, down, runs, examples, self.clients.sizes.sum(), collect, self.workers)
            totals.add(more, runs)
        return kept

    def _lone(self, clients: Tensor, batches: Batches) -> ValueError:
        """What to say of clients with a batch of one image."""
        sizes = (zip(clients.flatten().tolist(), row, strict=True) for row in batches.size)
        alone = sorted({k for row in sizes for k, n in row if n == 1})
        return ValueError(
            f"client(s) {', '.join(map(str, alone))} would train on a batch of one image "
            f"in round {self.t + 1}, which has no variance for batch norm; change batch_size, use "
            "local_steps instead of local_epochs, or take another norm"
        )

    def _mark(self, runs: Tensor, clients: Tensor, finite: Tensor) -> Tensor:
        """(S,) which runs are still finite; the others are marked as diverged and keep the state they had."""
        for s, row, who in zip(runs.tolist(), finite.tolist(), clients.tolist(), strict=True):
            if not all(row):
                names = ", ".join(str(k) for k, fine in zip(who, row, strict=True) if not fine)
                self.diverged[s] = (
                    f"{self.algorithm.name} with {self._describe(s)} diverged in round "
                    f"{self.t + 1}: weights or loss not finite on client(s) {names}"
                )
                warnings.warn(self.diverged[s] + "; its history ends there, other runs go on", stacklevel=4)
        return finite.all(dim=1)

    def _describe(self, s: int) -> str:
        told = {name: self.settings[s][name] for name in self.axes}
        told = {name: value for name, value in told.items() if value not in (None, 0.0) or name == "seed"}
        return ", ".join(f"{name} {value:g}" for name, value in told.items())

    # --- evaluation ---

    def evaluate(self) -> None:
        """Add a line to the history of every live run."""
        with one_thread(self.device):
            w, stage = self.server.shown(), self.stage
            moved = stage.count(self.layout, 1 + len(self.algorithm.shared))
            down, up = (4 * self.config["clients_per_round"] * numbers for numbers in moved)
            net = stage(copy.deepcopy(self.net)).to(self.device).eval()
            for s in self.live:
                pooled, by_client = (
                    self._accuracies(net, s, w[s]) if self.algorithm.objective.labels else (math.nan, [])
                )
                mean = sum(by_client) / len(by_client) if by_client else math.nan
                self.history[s].append({
                    "round": self.t, "loss": self.losses[s], "accuracy": pooled, "client_accuracy": mean,
                    "bytes_down": down, "bytes_up": up, "clients": by_client,
                })  # fmt: skip

    @property
    def stage(self) -> Stage:
        """The stage of the last round: what was frozen, which blocks were there."""
        return self.stages(max(self.t - 1, 0))

    def _accuracies(self, net: nn.Module, s: int, w: Tensor) -> tuple[float, list[float]]:
        """Pooled accuracy, and each client's own.

        Where parts of the network stay on the clients there is no global model: each client's own network is judged
        on its own test images (on the whole test set without ``test_parts``), and the pooled accuracy counts those.
        """
        buffers = self.server.buffers[s]
        if not self.clients.personal:
            right = self._correct(net, w, buffers)
            return right.mean().item(), [right[p].mean().item() for p in self.test_parts or ()]
        tests = self.test_parts or [None] * self.config["clients"]
        rights = [self._correct(net, *self.clients.row(s, k, w, buffers), index) for k, index in enumerate(tests)]
        return torch.cat(rights).mean().item(), [r.mean().item() for r in rights]

    def _correct(self, net: nn.Module, w: Tensor, buffers: Tensor, index: Tensor | None = None) -> Tensor:
        """(N,), 1.0 for each test image that the network classifies correctly with the weights of row ``w``."""
        self.layout.bind(net, w, buffers)
        x, y = self.data.x_test, self.data.y_test
        x, y = (x, y) if index is None else (x[index], y[index])

        def predict(images: Tensor) -> Tensor:
            with torch.no_grad(), self.clients.trainer.precision():  # both belong to a thread
                return net(prepare(images, *(self.normalisation or ()), dtype=w.dtype)).argmax(dim=1)

        predictions = self.workers.map(predict, x.split(100 if self.device.type == "cpu" else 2000))
        return (torch.cat(predictions) == y).to(w.dtype)

    # --- what is left of it ---

    def runs(self) -> list[Run]:
        """The runs as they stand."""
        columns = ["round", "loss", "accuracy", "client_accuracy", "bytes_down", "bytes_up"]
        # Only what a model needs: a Run that is kept must not keep the data and every client's row with it.
        layout, stage = self.layout, self.stage
        net = stage(copy.deepcopy(self.net)).cpu()
        w, buffers = self.server.w.cpu(), self.server.buffers.cpu()
        home, buffers_home = self.clients.home.cpu(), self.clients.buffers_home.cpu()
        stays, buffers_stay = stage.at_home.cpu(), stage.buffers_at_home.cpu()

        def network(s: int, client: int | None) -> nn.Module:
            own, row, stats = copy.deepcopy(net), w[s].clone(), buffers[s].clone()
            if client is not None:
                row[stays], stats[buffers_stay] = home[s, client], buffers_home[s, client]
            layout.bind(own, row, stats)
            return own.eval().requires_grad_(True)

        def by_client(lines: list[dict]) -> pd.DataFrame:
            rounds = pd.Index([line["round"] for line in lines], name="round", dtype=int)
            return pd.DataFrame([line["clients"] for line in lines], index=rounds, dtype=float)

        return [
            Run(
                {**self.config, **{name: own[name] for name in self.axes}, "settings": self._settings_of(own)},
                pd.DataFrame(self.history[s], columns=columns),
                by_client(self.history[s]),
                self.diverged[s],
                self.seconds,
                lambda client, s=s: network(s, client),
            )
            for s, own in enumerate(self.settings)
        ]

    def _settings_of(self, own: Mapping) -> dict:
        """The method's settings in one run."""
        return {name: own.get(name, value) for name, value in self.algorithm.settings.items()}

    def keep_lines(self, wanted: Callable[[int], bool]) -> None:
        """Drop the lines of the history of all rounds that are not wanted."""
        self.history = [[line for line in lines if wanted(line["round"])] for lines in self.history]

    # --- checkpoints ---

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint; one that cannot be written is a warning, and the one before it is kept."""
        state = {name: getattr(self, name) for name in ("t", "seconds", "history", "diverged", "losses")}
        checkpoints.write(
            Path(path), self._identity(), {**state, "server": self.server.state(), "clients": self.clients.state()}
        )

    def load(self, path: str | os.PathLike) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it cannot be read, or it belongs to another configuration.
        """
        state = checkpoints.read(Path(path), self._identity(), self.device)
        self.server.restore(state.pop("server"))
        self.clients.restore(state.pop("clients"))
        for name, value in state.items():
            setattr(self, name, value)

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


# --- what the arguments become ---


def _axes(algorithm: Algorithm, settings: Mapping[str, Sequence[float]] | None, **axes: Iterable) -> dict[str, list]:
    """The lists of values to combine, in the order in which they are: the seed changes fastest."""
    seed = axes.pop("seed")
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"settings must be a dict of a method's numbers to the values to combine, got {settings!r}")
    for name in settings or ():
        if name in ("lr", *axes, "seed"):
            raise ValueError(f"settings holds {name!r}, which is an argument of its own")
        if name not in algorithm.numbers:
            there = ", ".join(sorted({*algorithm.numbers} - {"clip"}))
            hint = checks.hint(name, algorithm.numbers)
            raise ValueError(
                f"settings holds {name!r}, which is no number of {algorithm.name!r}; it has {there}.{hint}"
            )
    found = {}
    for name, values in {**axes, **(settings or {}), "seed": seed}.items():
        single = isinstance(values, str) or getattr(values, "shape", None) == ()  # both claim that they can be iterated
        if single or not isinstance(values, Iterable):
            raise ValueError(f"{name} must be a list of the values to combine, got {values!r}; fl.run takes one")
        plain = [_plain_number(value) for value in values]
        found[name] = [float(v) if type(v) is int and name in (settings or ()) else v for v in plain]
        if not found[name]:
            raise ValueError(f"{name} must hold at least one value")
    for name, values in found.items():
        for value in values:
            _check_number(name, value, own=name in (settings or ()))
    return found


def _combine(algorithm: Algorithm, axes: Mapping[str, list]) -> list[dict]:
    """The numbers of each run: every combination of the axes, and the method's own where they say nothing."""
    own = algorithm.numbers
    runs = [{**own, **dict(zip(axes, values, strict=True))} for values in itertools.product(*axes.values())]
    return [{**s, "clip": own.get("clip") if s["clip"] is None else s["clip"]} for s in runs]


def _check_number(name: str, value: object, own: bool) -> None:
    """Refuse a value of an axis that makes no sense."""
    if name == "clip" and value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if name == "seed" and (not isinstance(value, int) or value < 0):
        raise ValueError(f"seed must be a whole number of at least 0, got {value!r}")
    if name == "lr" and not (math.isfinite(value) and value > 0):
        raise ValueError(f"lr must be positive and finite, got {value!r}")
    if name == "clip" and not value > 0:
        raise ValueError(f"clip must be positive, or None for no clipping, got {value!r}")
    if own or name == "weight_decay":
        check_setting(name, float(value))


def _whole(**numbers: int | None) -> list:
    """The numbers as Python's own, which a checkpoint can hold; refused where one is below 1."""
    checks.whole(**{name: number for name, number in numbers.items() if number is not None})
    return [None if number is None else int(number) for number in numbers.values()]


def _check_words(data: Data, **given: object) -> None:
    """Refuse a word that is not known, and what a text cannot be given."""
    known = {"augment": (None, *AUGMENTATIONS), "engine": ENGINES, "precision": PRECISIONS}
    for name, accepted in known.items():
        if given[name] not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {given[name]!r}")
    if data.is_text and (given["augment"] or given["normalise"]):
        raise ValueError(
            f"augment must be None and normalise False for the text {data.name!r}, got {given['augment']!r} and "
            f"{given['normalise']!r}"
        )


def _check_clients(data: Data, parts: Sequence[Tensor], test_parts: Sequence[Tensor] | None, K: int) -> None:
    """Refuse a partition that makes no sense, and a cohort that it cannot give."""
    if not len(parts):
        raise ValueError("parts must hold the images of at least one client, got none")
    checks.whole(clients_per_round=K)
    if K > len(parts):
        raise ValueError(f"clients_per_round must lie between 1 and the number of clients, {len(parts)}; got {K}")
    for name, split, images in (("parts", parts, data.x_train), ("test_parts", test_parts, data.x_test)):
        _check_parts(name, split, len(images))
    if test_parts is not None and len(test_parts) != len(parts):
        raise ValueError(
            f"test_parts must hold one index tensor per client, got {len(test_parts)} for {len(parts)} clients"
        )


def _threads(workers: int | None, device: torch.device) -> int:
    """How many threads train on a CPU."""
    if device.type != "cpu":
        return 1
    if workers is not None and workers > cores():
        warnings.warn(
            f"workers is {workers}, but this process may use {cores()} cores: the workers will wait for one another",
            stacklevel=4,
        )
    return cores() if workers is None else workers


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
    kept = runs * clients * row * len(algorithm.keeps)
    if kept > free:
        warnings.warn(
            f"{algorithm.name} keeps {kept / 1e9:.2g} GB for {clients} clients between rounds, and the free "
            f"memory of {device} is {free / 1e9:.2g} GB: it may not suffice; take fewer clients, fewer runs "
            "at once or a smaller network",
            stacklevel=3,
        )
    return max(1, (free - kept) // (SHARE * runs * row * (1 + len(algorithm.keeps))))


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


def _check_views(name: str, data: Data, batch_size: int, sizes: list[int], by_epochs: bool) -> None:
    """Refuse views of a text, and batches of one image, whose two views find each other without looking."""
    if data.is_text:
        raise ValueError(f"{name!r} distorts images, but {data.name!r} is a text")
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

"""The rounds: draw clients, train them, add up, move the server, evaluate; the result is a :class:`Run`.

A sweep is a cohort too. Runs that differ only in their seed or in a number change no shape, so their clients are more
rows of the same matrix: S runs of K clients are trained as S * K rows.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fedlib import accelerator, checks, fingerprint, fused
from fedlib import checkpoint as checkpoints
from fedlib import workers as cpu
from fedlib.algorithms import Algorithm, check_setting, clip, decay, fedavg
from fedlib.client import Clients, Kept
from fedlib.cohort import Batches, Layout, Stage, Stages, Trainer, convolutional
from fedlib.data import Data, prepare
from fedlib.dropout import keyed, own_generator, turn
from fedlib.messages import Down, Totals
from fedlib.partition import positions
from fedlib.schedule import AUGMENTATIONS, PADDING, Schedule
from fedlib.server import Server
from fedlib.workers import Workers, cores, one_thread, slices

ENGINES = ("auto", "clients", "stacked")
PRECISIONS = ("float32", "tf32", "bf16", "float64")
CHUNK = 32  # rows stacked together on a CPU; the same for any number of workers, which then cannot change a bit
DENSE_CHUNK = 64  # of networks without convolutions, whose rows are small
_COLUMNS = ("round", "loss", "validation", "accuracy", "client_accuracy", "bytes_down", "bytes_up")  # of every history
Split = Sequence[Tensor] | Callable[[int], Sequence[Tensor]]  # who holds what; the same for all seeds or not
SHARE = 16  # rows of a wave take this part of free memory at most: training needs several copies, and activations


@dataclass
class Run:
    """One federated training, as far as it went. It can be pickled, and comes back with its models.

    Attributes:
        config: everything that determines the result.
        history: one line per evaluated round: ``round``, ``loss`` (mean over the local steps of that round's clients),
            ``validation`` (pooled accuracy on the validation images; NaN without any), ``accuracy`` (pooled, on the
            whole test set), ``client_accuracy`` (mean over clients of each one's accuracy on its own test images; NaN
            without ``test_parts``), ``bytes_down`` and ``bytes_up`` (of that round, all clients together), and whatever
            ``measure`` gave. Accuracies lie in [0, 1]. Choices are made by ``validation``.
        clients: DataFrame of each client's accuracy on its own test images, in [0, 1]: one line per evaluated round
            (index ``round``), one column per client (0, 1, ...). Without ``test_parts`` there are no columns, unless
            parts of the network stay on the clients: then each client's network meets the whole test set.
        diverged: None, or what went wrong at which round and on which clients; the history then ends before it.
        seconds: wall time of training and evaluation, shared with the other runs of the same sweep.
        weights: what :meth:`model` makes networks of.
    """

    config: dict
    history: pd.DataFrame
    clients: pd.DataFrame
    diverged: str | None
    seconds: float
    weights: Weights = field(repr=False)

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
        if client is not None and not (checks.is_whole(client) and 0 <= client < clients):
            raise ValueError(f"client must be a number from 0 to {clients - 1}, or None, got {client!r}")
        return self.weights.network(client)


@dataclass
class Weights:
    """Where the networks of one run stand, on the CPU.

    Attributes:
        net: the network, in the stage of the last round.
        w, buffers: (P,) and (Q,), the global rows.
        home, buffers_home: (N, columns), what each of N clients has kept at home; ``columns`` are where it stands in a
            row.
    """

    net: nn.Module
    w: Tensor
    buffers: Tensor
    home: Tensor
    buffers_home: Tensor
    columns: tuple[Tensor, Tensor]

    def network(self, client: int | None = None) -> nn.Module:
        """A new module with the global weights, or with what a client has kept at home in their place."""
        net, row, stats = copy.deepcopy(self.net), self.w.clone(), self.buffers.clone()
        if client is not None:
            row[self.columns[0]], stats[self.columns[1]] = self.home[client], self.buffers_home[client]
        Layout(net).bind(net, row, stats)
        return net.eval().requires_grad_(True)


def run(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    parts: Split,
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
    parts: Split,
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
        evaluate_every: rounds between evaluations; the last round is always evaluated. Default: 20 times in a run; one
            that is continued from a shorter one of other habits keeps those.
        checkpoint: a file (``~`` is the home folder). It is written every ``checkpoint_every`` rounds (if given) and
            every ``checkpoint_minutes``; when it exists, the sweep continues from it and gives the result that an
            uninterrupted one gives, bit for bit on the same CPU. On another processor or version of torch it goes on
            with a warning, and gives the same result to rounding. More rounds than before may be asked for. A file
            that cannot be written is a warning before the first round, and training goes on.
        progress: show a progress bar; a string is its label.

    Returns:
        One :class:`Run` for each combination, in the order of
        ``itertools.product(lr, weight_decay, clip, *settings.values(), seed)``.

    Raises:
        ValueError: for an argument that makes no sense, or a checkpoint that belongs to another configuration.
    """
    given = {"rounds": rounds, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    rounds, evaluate_every, checkpoint_every = _whole(**given)
    if not checks.is_number(checkpoint_minutes) or not checkpoint_minutes >= 0:
        raise ValueError(f"checkpoint_minutes must be a number of at least 0, got {checkpoint_minutes!r}")
    if not isinstance(progress, (bool, str)):
        raise ValueError(f"progress must be True, False or a label, got {progress!r}")
    file = None if checkpoint is None else checkpoints.place(checkpoint)
    sim = Simulation(model, data, parts, algorithm, **options)
    every = evaluate_every or max(1, rounds // 20)
    if file and os.path.exists(file):  # False for what cannot be looked at
        sim.load(file)
        if sim.t > rounds:
            raise ValueError(f"checkpoint {file} has {sim.t} rounds, more than the {rounds} asked for")
        every = _go_on_evaluating(sim, file, rounds, evaluate_every, every)
    elif file:
        _ = sim._alike  # a network that cannot be asked is told of now, not at the first save
        checkpoints.try_out(file)
    sim.config |= {"rounds": rounds, "evaluate_every": every}
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
                sim._write(file)
                saved = time.monotonic()
    return sim.runs()


def _go_on_evaluating(sim: Simulation, file: Path, rounds: int, asked: int | None, every: int) -> int:
    """Keep the lines of the history that an uninterrupted run would have, and say how many rounds lie between them.

    Raises:
        ValueError: rounds that were asked for by ``evaluate_every`` have not been evaluated.
    """
    there = {line["round"] for lines in sim.history for line in lines}
    last = sim.t if sim.live else max(there, default=0)  # runs that diverged have no lines after that
    if not there.issuperset(range(every, last + 1, every)):
        habit = sim.evaluated_every
        if asked is not None or habit is None:
            raise ValueError(
                f"checkpoint {file} has been evaluated in rounds {', '.join(map(str, sorted(there))) or '-'} and not "
                f"every {every}; give evaluate_every={habit}, or this run another file"
            )
        every = habit
    sim.keep_lines(lambda t: t % every == 0 or t == rounds)  # the last round of a shorter run is no line here
    return every


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
        parts: for each client the positions of its images in the training set: 1-D arrays, tensors or lists of whole
            numbers, or a table (clients, images); see :func:`fedlib.partition.positions`. Or a function of the seed
            that gives them, so that runs with different seeds differ in the partition too, of as many clients.
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
        test_parts: the same for the test images, for per-client accuracy.
        val_parts: the same for the validation images (:func:`fedlib.data.hold_out`), where parts of the network stay on
            the clients; each client's own network is then judged on its own.
        device: default ``"cuda"`` where there is one.
        engine: ``"clients"``, ``"stacked"`` or ``"auto"``; see :mod:`fedlib.cohort`. ``Run.config`` has the choice,
            which a GPU makes by timing: the first rounds are trained by either, three each.
        chunk: rows stacked together; halved, with a warning, when a GPU's memory does not hold their training.
        wave: clients of each run that are trained at a time, at most. A round trains its cohort in waves of about the
            same size and adds up what they send, so that a wave bounds the memory for weights and their training.
            When left out, the whole cohort, or as much of it as the free memory allows. It changes no number beyond
            rounding, and a checkpoint may be continued with another one.
        workers: CPU threads; the number of cores when left out. More of them than cores are accepted with a warning.
        precision: ``"float32"``, ``"tf32"`` (on a GPU only), ``"bf16"`` (autocast: matrix products and convolutions in
            bfloat16, weights and their sums in float32) or ``"float64"``.
        measure: ``(network) -> {name: number}``, asked at every evaluation of a copy of the global network, in
            evaluation mode and on ``device``. Each name is a column of the history.

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
        parts: Split,
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
        test_parts: Split | None = None,
        val_parts: Split | None = None,
        device: str | torch.device | None = None,
        engine: str = "auto",
        chunk: int | None = None,
        wave: int | None = None,
        workers: int | None = None,
        precision: str = "float32",
        measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
    ):
        self.algorithm = fedavg() if algorithm is None else algorithm
        _check_kinds(model, data, self.algorithm)
        self.axes = _axes(self.algorithm, settings, lr=lr, weight_decay=weight_decay, clip=clip, seed=seed)
        self.settings = _combine(self.algorithm, self.axes)
        self.held = _who_holds(data, self.axes["seed"], parts, test_parts, val_parts)
        N = len(self.held[self.axes["seed"][0]].train)
        K = N if clients_per_round is None else _cohort(clients_per_round, N)
        given = {"batch_size": batch_size, "local_steps": local_steps, "local_epochs": local_epochs, "chunk": chunk}
        batch_size, local_steps, local_epochs, chunk, wave, workers = _whole(**given, wave=wave, workers=workers)
        if (local_steps is None) == (local_epochs is None):
            raise ValueError("give either local_steps or local_epochs, and not both")
        if not (checks.is_number(lr_decay) and 0 < lr_decay <= 1):
            raise ValueError(f"lr_decay must lie in (0, 1], got {lr_decay!r}")
        _check_words(data, augment=augment, normalise=normalise, engine=engine, precision=precision)
        self.device = _device(device)
        if precision == "tf32" and not accelerator.on(self.device):
            raise ValueError(f"precision 'tf32' needs a CUDA device, this run is on {self.device.type!r}")
        if precision == "bf16" and accelerator.on(self.device) and not accelerator.has_bf16(self.device):
            raise ValueError(
                "precision 'bf16' needs a GPU that computes in bfloat16; this one would emulate it, more slowly than "
                "'float32'"
            )
        dtype = torch.float64 if precision == "float64" else torch.float32
        networks = _networks(model, [s["seed"] for s in self.settings], dtype)
        self.probe = _probe(networks[0], data, self.algorithm.objective.labels)
        if self.probe.draws:
            engine, workers = "clients", 1
            warnings.warn(
                "the network draws random numbers that are not those of torch's dropout layers (F.dropout, stochastic "
                "depth, noise): its clients are trained one after another, each with a generator of its own",
                stacklevel=2,
            )
        self.workers = Workers(_threads(workers, self.device), self.device)
        if self.algorithm.objective.view:
            for held in self.held.values():
                sizes = [len(part) for part in held.train]
                _check_views(self.algorithm.name, data, batch_size, sizes, local_steps is None)
        waves = -(-K // (wave or _fitting(networks[0], self.algorithm, len(self.settings), N, self.device)))
        rows = len(self.settings) * K
        self.config = {
            "algorithm": self.algorithm.name,
            "settings": dict(self.algorithm.settings),
            "data": data.name,
            "train_images": len(data.x_train),
            "test_images": len(data.x_test),
            "validation_images": 0 if data.x_val is None else len(data.x_val),
            **{
                name: {seed: fingerprint.of_parts(getattr(held, split)) for seed, held in self.held.items()}
                for name, split in (("parts", "train"), ("test_parts", "test"), ("val_parts", "val"))
            },
            "clients": N,
            "clients_per_round": K,
            "batch_size": batch_size,
            "local_steps": local_steps,
            "local_epochs": local_epochs,
            "lr_decay": float(lr_decay),
            "augment": augment,
            "normalise": normalise,
            "precision": precision,
            "device": self.device.type,
            "engine": engine if engine != "auto" else _choose_engine(networks[0], self.device, data, rows),
            "chunk": chunk or _chunk(networks[0], self.device, rows),
            "wave": -(-K // waves),
        }
        self.engine = self.config["engine"]  # "auto" where it is timed, which is no property of the result
        self._make_sides(networks, data)
        self.config["engine"] = self.trial.next.engine
        self.measure = measure
        if measure is not None and not callable(measure):
            raise ValueError(f"measure must be a function of the network, got {measure!r}")
        if measure is not None and self.clients.personal:
            raise ValueError(
                f"measure is asked of one network for all, but with {self.algorithm.name} parts stay on the clients"
            )
        self.history: list[list[dict]] = [[] for _ in self.settings]
        self.diverged: list[str | None] = [None] * len(self.settings)
        self.losses = dict.fromkeys(range(len(self.settings)), math.nan)
        self.t, self.seconds = 0, 0.0
        self.numbers = accelerator.Numbers(self.device)
        self.drawing = ThreadPoolExecutor(1, "draws") if accelerator.on(self.device) else None
        self.ahead: tuple[tuple[list[int], int], Future] | None = None
        self.evaluated_every: int | None = None  # of a checkpoint that was loaded

    def _make_sides(self, networks: list[nn.Module], data: Data) -> None:
        """Schedule, clients and server of the federations that ``config`` describes."""
        algorithm, config = self.algorithm, self.config
        # A copy, because rounds change its stage and a caller's function may give a network it still needs.
        self.net, self.data, self.given = copy.deepcopy(networks[0]), data.to(self.device), data
        if not self.probe.channels_last:
            # Convolutions look at the strides of a single channel too, which contiguous() leaves as they are.
            lie = partial(_lying, channels_last=False) if convolutional(self.net) else Tensor.contiguous
            images = {name: getattr(self.data, name) for name in ("x_train", "x_test", "x_val")}
            self.data = replace(self.data, **{name: lie(x) for name, x in images.items() if x is not None})
        self.layout = Layout(self.net)
        pairs = zip(*(self.layout.read(net) for net in networks), strict=True)
        w, buffers = (torch.stack(some).to(self.device) for some in pairs)
        self.start = fingerprint.of_weights(map(torch.cat, zip(w, buffers, strict=True)))
        self.stages = Stages(self.net, algorithm.travels, self.device)
        self.normalisation = (data.mean, data.std) if config["normalise"] else None
        direction = self._direction()
        trainer = partial(
            Trainer,
            self.net,
            algorithm.objective.loss,
            direction,
            images=self.data.x_train,
            labels=self.data.y_train,
            normalisation=self.normalisation,
            padding=PADDING,
            chunk=config["chunk"],
            workers=self.workers,
            autocast=torch.bfloat16 if config["precision"] == "bf16" else None,
            tf32=config["precision"] == "tf32",
            draws=self.probe.draws,
            channels_last=self.probe.channels_last,
            fused=() if direction else self._fused(),
        )
        engines = ENGINES[1:] if config["engine"] == "auto" else (config["engine"],)
        self.trial = Trial({engine: trainer(engine=engine) for engine in engines}, self.device)
        labels = data.y_train.cpu()
        of_seed = {
            seed: torch.stack([labels[torch.from_numpy(p)].bincount(minlength=data.num_classes) for p in held.train])
            for seed, held in self.held.items()
        }
        counts = torch.stack([of_seed[s["seed"]] for s in self.settings]).to(self.device, w.dtype)
        self.own = {
            seed: {
                split: None if parts is None else [torch.from_numpy(p).to(self.device) for p in parts]
                for split, parts in (("test", held.test), ("val", held.val))
            }
            for seed, held in self.held.items()
        }
        self.clients = Clients(
            self.trial.next, algorithm, counts, w, buffers, self.settings, self.stages(0), config["lr_decay"]
        )
        own = [{name: s[name] for name in algorithm.numbers} for s in self.settings]
        self.server = Server(algorithm.server, w, buffers, own, config["clients"], algorithm.shared)
        drawn = ("clients_per_round", "batch_size", "local_steps", "local_epochs", "augment")
        self.schedule = Schedule(
            {seed: held.train for seed, held in self.held.items()},
            **{name: config[name] for name in drawn},
            view=algorithm.objective.view,
            device=self.device,
            keys=self.probe.draws or self.probe.dropout,
        )

    def _fused(self) -> list[str]:
        """The dense layers that can take a step of plain SGD inside their backward pass."""
        elsewhere = (
            self.config["engine"] != "clients" or self.device.type != "cpu" or self.config["precision"] == "bf16"
        )
        if elsewhere or self.probe.draws or self.probe.dropout:
            return []
        x, y = self.data.x_train[[0, -1]].cpu(), self.data.y_train[[0, -1]].cpu()
        held = torch.ones(self.data.num_classes, dtype=torch.float64)
        with one_thread(x.device):
            return fused.fitting(self.net, partial(_loss, self.algorithm, held), prepare(x, dtype=torch.float64), y)

    def _direction(self) -> tuple:
        """The row transformations of a step without those that would do nothing: without any, a step is faster."""
        unused = [f for f, name in ((clip, "clip"), (decay, "weight_decay")) if not any(s[name] for s in self.settings)]
        used = tuple(f for f in (*self.algorithm.correct, *self.algorithm.step) if f not in unused)
        return () if used == (decay,) else used  # plain SGD knows weight decay

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
        self.clients.trainer = self.trial.next
        with self.trial:
            self._step()
        self.config["engine"] = self.trial.next.engine

    def _step(self) -> None:
        # Sums over clients are short: threads that wait for one another there cost more than they save.
        with one_thread(self.device), accelerator.tf32(False, self.device):
            began, stage, down = self.live, self.stages(self.t), self.server.begin(self.t)
            self.clients.enter(stage)
            clients, batches = self._draw([self.settings[s]["seed"] for s in began])
            totals, kept = Totals.none(down.w, down.buffers), Kept()
            examples = self.clients.sizes[self.numbers(began)].gather(1, clients).sum(dim=1, keepdim=True)
            rows = torch.arange(clients.numel()).view(clients.shape)
            for some in slices(clients.shape[1], self.config["wave"]):
                here = [i for i, s in enumerate(began) if self.diverged[s] is None]  # not in an earlier wave either
                if not here:
                    break
                own, at = batches.take(rows[here, some].flatten()), self.numbers(here)
                runs = [began[i] for i in here]
                kept += self._wave(runs, clients[at, some], own, examples[at], down, totals)
            if self.live:
                fine = self.server.move(totals, self.live, self.t, frozen=stage.frozen)
                moved, losses = fine.tolist(), totals.losses.tolist()
                for s in [s for s, well in zip(self.live, moved, strict=True) if not well]:
                    self._end(s, "the server's weights, memory or batch statistics", "after its step")
                self.clients.keep(kept, without=[s for s in began if self.diverged[s] is not None])
                self.losses = dict(enumerate(losses))
            self.t += 1

    def _draw(self, seeds: list[int]) -> tuple[Tensor, Batches]:
        """This round's clients and batches. On a GPU the next one's are drawn while this one trains."""
        if self.drawing is None:
            return self.schedule.draw(seeds, self.t)
        ahead, self.ahead = self.ahead, None
        drawn = ahead[1].result() if ahead and ahead[0] == (seeds, self.t) else self.schedule.prepare(seeds, self.t)
        self.ahead = ((seeds, self.t + 1), self.drawing.submit(self.schedule.prepare, seeds, self.t + 1))
        return self.schedule.send(drawn)

    def _wave(
        self, runs: list[int], clients: Tensor, batches: Batches, examples: Tensor, down: Down, totals: Totals
    ) -> Kept:
        """Train some clients of each run, and add what they send to the totals."""
        of = self.numbers(runs)
        try:
            up, kept, finite = self.clients.train(of, clients, batches, down)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise self._lone(clients, batches) from error
        fine = self._mark(runs, clients, finite)
        if fine:
            if len(fine) < len(runs):
                at = self.numbers(fine)
                of, examples, up = of[at], examples[at], up.take(at)
            collect, everybody = self.algorithm.server.collect, self.clients.sizes[of].sum(dim=1, keepdim=True)
            totals.add(Totals.of(up, down, of, examples, everybody, collect, self.workers), of)
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

    def _mark(self, runs: list[int], clients: Tensor, finite: Tensor) -> list[int]:
        """Positions of the runs that are still finite; the others are marked, and keep the state they had."""
        rows = finite.tolist()
        for i, (s, row) in enumerate(zip(runs, rows, strict=True)):
            if not all(row):
                names = ", ".join(str(k) for k, fine in zip(clients[i].tolist(), row, strict=True) if not fine)
                self._end(s, "weights or loss", f"on client(s) {names}")
        return [i for i, row in enumerate(rows) if all(row)]

    def _end(self, s: int, what: str, where: str, t: int | None = None) -> None:
        """Mark a run as diverged in round ``t`` (1, 2, ...), the one at work when left out."""
        which = f"{self.algorithm.name} with {self._describe(s)}"
        self.diverged[s] = message = f"{which} diverged in round {t or self.t + 1}: {what} not finite {where}"
        warnings.warn(message + "; its history ends there, other runs go on", stacklevel=5)

    def _describe(self, s: int) -> str:
        told = {name: self.settings[s][name] for name in self.axes}
        told = {name: value for name, value in told.items() if value not in (None, 0.0) or name == "seed"}
        return ", ".join(f"{name} {value:g}" for name, value in told.items())

    # --- evaluation ---

    def evaluate(self) -> None:
        """Add a line to the history of every live run."""
        with one_thread(self.device), accelerator.tf32(False, self.device):
            w, stage = self.server.shown(), self.stage
            moved = stage.count(self.layout, 1 + len(self.algorithm.shared))
            down, up = (4 * self.config["clients_per_round"] * numbers for numbers in moved)
            net = stage(copy.deepcopy(self.net)).to(self.device).eval()
            live, told = self.live, {}
            if self.algorithm.objective.labels:
                told = {s: [self._accuracies(net, s, w[s], split) for split in ("val", "test")] for s in live}
            # One copy to the host for all of them.
            found = [one for both in told.values() for one in both if one is not None]
            values = iter(torch.cat(found).tolist() if found else ())
            for s in live:
                both = [[next(values) for _ in one] if one is not None else [math.nan] for one in told.get(s, ())]
                (valid, *_), (pooled, *by_client) = both or ([math.nan], [math.nan])
                wanted = [pooled, *by_client, *([valid] if self.data.x_val is not None else [])]
                if both and math.isnan(sum(wanted)):
                    self._end(s, "the outputs of the network", "on test images", self.t)
                    continue
                mean = sum(by_client) / len(by_client) if by_client else math.nan
                self.history[s].append({
                    "round": self.t, "loss": self.losses[s], "validation": valid, "accuracy": pooled,
                    "client_accuracy": mean, "bytes_down": down, "bytes_up": up, "clients": by_client,
                    **self._measured(net, s, w[s]),
                })  # fmt: skip

    def _measured(self, net: nn.Module, s: int, w: Tensor) -> dict[str, float]:
        """What ``measure`` says of the network of run ``s``.

        Raises:
            ValueError: it gives no numbers by name, or a name that is a column already.
        """
        if self.measure is None:
            return {}
        self.layout.bind(net, w, self.server.buffers[s])
        found = self.measure(copy.deepcopy(net))
        if not isinstance(found, Mapping) or not all(checks.is_number(value) for value in found.values()):
            raise ValueError(f"measure must give a dict of names to numbers, got {found!r}")
        taken = {*_COLUMNS, "clients"} & {*found}
        if taken:
            raise ValueError(f"measure must give names that are no columns of the history already, got {sorted(taken)}")
        return {str(name): float(value) for name, value in found.items()}

    @property
    def stage(self) -> Stage:
        """The stage of the last round: what was frozen, which blocks were there."""
        return self.stages(max(self.t - 1, 0))

    def _accuracies(self, net: nn.Module, s: int, w: Tensor, split: str) -> Tensor | None:
        """Pooled accuracy on the images of a split (``"test"``, ``"val"``), then each client's; None without images.

        Where parts of the network stay on the clients there is no global model: each client's own network is judged
        on its own images (on all of the split where nobody has its own), and the pooled accuracy counts those.
        """
        if getattr(self.data, f"x_{split}") is None:
            return None
        buffers, own = self.server.buffers[s], self.own[self.settings[s]["seed"]][split]
        if not self.clients.personal:
            right = self._correct(net, w, buffers, split)
            return torch.stack([right.mean(), *(right[p].mean() for p in own or ())])
        index = own or [None] * self.config["clients"]
        rights = [self._correct(net, *self.clients.row(s, k, w, buffers), split, some) for k, some in enumerate(index)]
        return torch.stack([torch.cat(rights).mean(), *(r.mean() for r in rights)])

    def _correct(self, net: nn.Module, w: Tensor, buffers: Tensor, split: str, index: Tensor | None = None) -> Tensor:
        """(N,), 1.0 for each image of a split that the network classifies correctly with the weights of row ``w``.

        NaN where its outputs overflow: the largest of them means nothing then, and would be class 0.
        """
        self.layout.bind(net, w, buffers)
        x, y = getattr(self.data, f"x_{split}"), getattr(self.data, f"y_{split}")
        x, y = (x, y) if index is None else (x[index], y[index])

        def predict(images: Tensor) -> Tensor:
            with torch.no_grad(), self.clients.trainer.precision():  # both belong to a thread
                logits = net(prepare(images, *(self.normalisation or ()), dtype=w.dtype))
                lost = (logits.isnan() | logits.isposinf()).any(dim=1)
                return logits.argmax(dim=1).masked_fill(lost, -1)

        some = x.split(100 if self.device.type == "cpu" else 2000)
        if self.probe.draws_in_evaluation:
            with own_generator(self.t, self.device):
                predictions = [predict(images) for images in some]
        else:
            predictions = self.workers.map(predict, some)
        predicted = torch.cat(predictions)
        return (predicted == y).to(w.dtype).masked_fill(predicted < 0, math.nan)

    # --- what is left of it ---

    def runs(self) -> list[Run]:
        """The runs as they stand."""
        columns = dict.fromkeys([*_COLUMNS, *(name for lines in self.history for line in lines for name in line)])
        columns = [name for name in columns if name != "clients"]
        # Only what a model needs: a Run that is kept must not keep the data and every client's row with it.
        stage, server, clients = self.stage, self.server, self.clients
        net = stage(copy.deepcopy(self.net)).cpu()
        rows = (server.w, server.buffers, clients.home, clients.buffers_home)
        columns_home = stage.at_home.cpu(), stage.buffers_at_home.cpu()

        def by_client(lines: list[dict]) -> pd.DataFrame:
            rounds = pd.Index([line["round"] for line in lines], name="round", dtype=int)
            return pd.DataFrame([line["clients"] for line in lines], index=rounds, dtype=float)

        return [
            Run(
                {**self._config_of(s), **{name: own[name] for name in self.axes}, "settings": self._settings_of(own)},
                pd.DataFrame(self.history[s], columns=columns),
                by_client(self.history[s]),
                self.diverged[s],
                self.seconds,
                Weights(net, *(row[s].cpu().clone() for row in rows), columns=columns_home),
            )
            for s, own in enumerate(self.settings)
        ]

    def _config_of(self, s: int) -> dict:
        """What run s has in common with the others, its own partition, and its initial weights in short."""
        seed = self.settings[s]["seed"]
        splits = {name: self.config[name][seed] for name in ("parts", "test_parts", "val_parts")}
        return {**self.config, **splits, "start": fingerprint.of_tensor(self.start[s])}

    def _settings_of(self, own: Mapping) -> dict:
        """The method's settings in one run."""
        return {name: own.get(name, value) for name, value in self.algorithm.settings.items()}

    def keep_lines(self, wanted: Callable[[int], bool]) -> None:
        """Drop the lines of the history of all rounds that are not wanted."""
        self.history = [[line for line in lines if wanted(line["round"])] for lines in self.history]

    # --- checkpoints ---

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint; one that cannot be written is a warning, and the one before it is kept."""
        self._write(checkpoints.place(path))

    def _write(self, file: Path) -> None:
        state = {name: getattr(self, name) for name in ("t", "seconds", "history", "diverged", "losses")}
        state |= {"evaluate_every": self.config.get("evaluate_every")}
        state |= {"server": self.server.state(), "clients": self.clients.state()}
        checkpoints.write(file, self._identity, state)

    def load(self, path: str | os.PathLike) -> None:
        """Go on from a checkpoint; a warning says where it was made, if that was elsewhere.

        Raises:
            ValueError: it cannot be read, or it belongs to another configuration.
        """
        state = checkpoints.read(checkpoints.place(path), self._identity, self.device)
        self.server.restore(state.pop("server"))
        self.clients.restore(state.pop("clients"))
        self.evaluated_every = state.pop("evaluate_every")
        for name, value in state.items():
            setattr(self, name, value)

    @cached_property
    def _identity(self) -> checkpoints.Identity:
        """What must agree for a checkpoint to be continued."""
        # More rounds may be asked for, and smaller waves; how the work is spread changes nothing beyond rounding.
        elsewhere = ("device", "engine", "chunk")
        free = ("rounds", "evaluate_every", "wave", *elsewhere)
        shapes = {name: list(s) for name, s in {**self.layout.parameters, **self.layout.buffers}.items()}
        same = {name: value for name, value in self.config.items() if name not in free}
        same |= {"data": f"{self.given.name} {fingerprint.of_data(self.given)}", "runs": self.settings}
        same |= {"functions": fingerprint.of_functions(self.algorithm), "network": shapes}
        same |= {"numbers of the network": fingerprint.of_numbers(self.net)}
        same |= {} if self.measure is None else {"measure": fingerprint.of_functions(self.measure)}
        made = {name: self.config[name] for name in elsewhere}
        made |= {"engine": self.engine, "torch": str(torch.__version__)}
        return checkpoints.Identity(same, {"start": self.start, **self._alike}, made)

    @cached_property
    def _alike(self) -> dict[str, Tensor]:
        """What the network computes."""
        try:
            with one_thread(self.device):
                return fingerprint.of_network(self.net, self.algorithm.loss, self.data, self.normalisation)
        except Exception as error:  # whatever a caller's network or loss stumbles over
            raise ValueError(
                f"checkpoint: what the network computes is asked on {2 * fingerprint.IMAGES} images, to tell it from "
                f"others, and that failed: {type(error).__name__}: {error}"
            ) from error


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
    if name == "seed" and not (isinstance(value, int) and 0 <= value < 2**64):
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {value!r}")
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
    known = {"augment": (None, *AUGMENTATIONS), "engine": ENGINES, "precision": PRECISIONS, "normalise": (True, False)}
    for name, accepted in known.items():
        value = given[name]
        if not (value is None or isinstance(value, (str, bool))) or value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {given[name]!r}")
    if data.is_text and (given["augment"] or given["normalise"]):
        raise ValueError(
            f"augment must be None and normalise False for the text {data.name!r}, got {given['augment']!r} and "
            f"{given['normalise']!r}"
        )


def _check_kinds(model: object, data: object, algorithm: object) -> None:
    """Refuse what is no network, no data set or no method."""
    if not isinstance(data, Data):
        raise ValueError(f"data must be a data set of fl.data.load or fl.data.from_arrays, got {type(data).__name__}")
    if not isinstance(algorithm, Algorithm):
        call = f"; call it: {algorithm.__name__}()" if inspect.isfunction(algorithm) else ""
        raise ValueError(f"algorithm must be a method such as fl.algorithms.fedavg(), got {algorithm!r}{call}")
    if isinstance(model, nn.Module):
        return
    if not callable(model):
        raise ValueError(f"model must be a module, or a function that makes one, got {model!r}")
    try:
        inspect.signature(model).bind()
    except TypeError as error:
        raise ValueError(f"model must be a function without arguments, got {model!r}: {error}") from error


class Trial:
    """Which of some trainers to take: each has the rounds that it takes to be fast, and the last of them is timed.

    Attributes:
        next: the trainer of the round to come; the faster one, once that is known.
    """

    ROUNDS = 3  # as they come, recorded, replayed: see fedlib.accelerator

    def __init__(self, trainers: Mapping[str, Trainer], device: torch.device):
        self.trainers, self.device = dict(trainers), device
        self.seconds: dict[str, list[float]] = {engine: [] for engine in trainers}
        self.began: float | None = None
        self.next = next(iter(self.trainers.values()))

    def __enter__(self) -> None:
        if len(self.trainers) > 1:
            accelerator.wait(self.device)
            self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        if self.began is None:
            return
        accelerator.wait(self.device)
        self.seconds[self.next.engine].append(time.perf_counter() - self.began)
        self.began = None
        waiting = [engine for engine, took in self.seconds.items() if len(took) < self.ROUNDS]
        if not waiting:
            best = min(self.seconds, key=lambda engine: self.seconds[engine][-1])
            self.trainers = {best: self.trainers[best]}
        self.next = self.trainers[waiting[0]] if waiting else next(iter(self.trainers.values()))


@dataclass
class Held:
    """Who holds what under one seed: positions of each client's images; None where a split has none of its own."""

    train: list[np.ndarray]
    test: list[np.ndarray] | None
    val: list[np.ndarray] | None


def _who_holds(
    data: Data, seeds: Sequence[int], parts: Split, test_parts: Split | None, val_parts: Split | None
) -> dict[int, Held]:
    """seed -> who holds what."""
    if val_parts is not None and data.x_val is None:
        raise ValueError(f"val_parts needs validation images, and {data.name!r} has none; see fl.data.hold_out")
    given = {"parts": parts, "test_parts": test_parts, "val_parts": val_parts}
    if not any(map(callable, given.values())):
        return dict.fromkeys(seeds, _check_parts(data, given))
    found: dict[int, Held] = {}
    for seed in dict.fromkeys(seeds):
        found[seed] = _check_parts(
            data, {name: split(seed) if callable(split) else split for name, split in given.items()}
        )
    sizes = {seed: len(held.train) for seed, held in found.items()}
    if len({*sizes.values()}) > 1:
        raise ValueError(f"parts must give the same number of clients for every seed, got {sizes}")
    return found


def _check_parts(data: Data, given: Mapping[str, Any]) -> Held:
    """The clients' images as arrays; refused where a client has none."""
    splits = {"parts": "train", "test_parts": "test", "val_parts": "val"}
    wanted: dict[str, Any] = {name: split for name, split in given.items() if split is not None or name == "parts"}
    found = {name: positions(name, split, len(getattr(data, f"x_{splits[name]}"))) for name, split in wanted.items()}
    if not found["parts"]:
        raise ValueError("parts must hold the images of at least one client, got none")
    for name, split in found.items():
        got, clients = len(split), len(found["parts"])
        if got != clients:
            raise ValueError(f"{name} must hold one index tensor per client, got {got} for {clients} clients")
        for k, part in enumerate(split):
            if not len(part):
                raise ValueError(f"{name} leaves client {k} without images")
    if "test_parts" in found and data.domains:
        _warn_of_mixed_domains(data, found["parts"], found["test_parts"])
    return Held(found["parts"], found.get("test_parts"), found.get("val_parts"))


def _warn_of_mixed_domains(data: Data, parts: list[np.ndarray], test_parts: list[np.ndarray]) -> None:
    """Say so where a client is tested on domains that it has never trained on: seldom what is meant."""
    trained, tested = (
        [np.unique(domain.cpu().numpy()[part]) for part in split]
        for domain, split in ((data.domain_train, parts), (data.domain_test, test_parts))
        if domain is not None
    )
    strange = [k for k, own in enumerate(trained) if not np.isin(tested[k], own).all()]
    if strange:
        foreign = data.domains[int(np.setdiff1d(tested[strange[0]], trained[strange[0]])[0])]
        warnings.warn(
            f"test_parts tests {len(strange)} of {len(parts)} clients on domains that they do not train on (client "
            f"{strange[0]} on {foreign!r}); for clients that are tested on their own, take "
            "fl.partition.by_domain(data.domain_test, ...), or fl.partition.like with domains",
            stacklevel=5,
        )


def _cohort(clients_per_round: Any, clients: int) -> int:
    """The size of a cohort; refused where there are not as many clients."""
    checks.whole(clients_per_round=clients_per_round)
    if clients_per_round > clients:
        raise ValueError(
            f"clients_per_round must lie between 1 and the number of clients, {clients}; got {clients_per_round}"
        )
    return int(clients_per_round)


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
    if wanted is None:
        wanted = accelerator.KIND if accelerator.there() else "cpu"
    try:
        if not isinstance(wanted, (str, torch.device)):  # 0 would be the first GPU to torch, and nothing to others
            raise RuntimeError("a number is no name; 'cuda:0' is the first GPU")
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or another name torch knows, got {wanted!r}") from error
    if device.type == "cuda" and not accelerator.there():
        raise ValueError(f"device {wanted!r} was asked for, but torch finds no CUDA GPU here; leave it out for the CPU")
    return device


def _loss(algorithm: Algorithm, held: Tensor, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a client that holds ``held`` images of each class."""
    return algorithm.loss(net, x, y, held)


def _networks(model: nn.Module | Callable[[], nn.Module], seeds: list[int], dtype: torch.dtype) -> list[nn.Module]:
    """The initial network of every run: the same for equal seeds."""
    if isinstance(model, nn.Module):
        _check_model(model)
        return [copy.deepcopy(model).cpu().to(dtype)] * len(seeds)
    made = {}
    for seed in seeds:
        if seed not in made:
            with own_generator(seed):
                made[seed] = _check_model(model()).cpu().to(dtype)
    return [made[seed] for seed in seeds]


def _check_model(net: object) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise ValueError(f"model must give a torch.nn.Module, got {net!r}")
    if not any(p.requires_grad for p in net.parameters()):
        raise ValueError(f"model must have parameters that learn, got {type(net).__name__} without any")
    return net


def _chunk(net: nn.Module, device: torch.device, rows: int) -> int:
    """How many rows are stacked together: on a GPU all of them."""
    return rows if accelerator.on(device) else min(rows, CHUNK if convolutional(net) else DENSE_CHUNK)


def _choose_engine(net: nn.Module, device: torch.device, data: Data, rows: int) -> str:
    """Stacked where launching an operation costs more than doing it: small images and few weights on a CPU.

    There vmap costs as much as two or three rows. On a GPU that is not known beforehand: ``"auto"``.
    """
    if accelerator.on(device):
        return "auto"
    weights = sum(p.numel() for p in net.parameters())
    small = weights < 100_000 and data.x_train[0].numel() <= 256 and rows > 2
    return "stacked" if small else "clients"


def _fitting(net: nn.Module, algorithm: Algorithm, runs: int, clients: int, device: torch.device) -> int:
    """How many clients of each run the free memory allows to train together, 1 at least.

    Warns where it does not even hold what all clients keep between rounds.
    """
    free = accelerator.free(device) if accelerator.on(device) else psutil.virtual_memory().available
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


def _plain_number(value: Any) -> Any:
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


@dataclass(frozen=True)
class Probe:
    """What a network does with two images.

    Attributes:
        channels_last: whether it takes images that lie as N,H,W,C in memory, and has a use for it.
        dropout: whether it has dropout layers, whose masks :mod:`fedlib.dropout` draws.
        draws, draws_in_evaluation: whether it draws other random numbers, in training and in evaluation.
    """

    channels_last: bool
    dropout: bool
    draws: bool
    draws_in_evaluation: bool


def _probe(net: nn.Module, data: Data, labels: bool = True) -> Probe:
    """Ask a network beforehand what would otherwise go wrong during training, or silently.

    Raises:
        ValueError: it does not fit the images or, if there are ``labels``, the classes.
    """
    net, dtype = copy.deepcopy(net).cpu(), next(net.parameters()).dtype
    layers, images = keyed(net), data.x_train[[0, -1]].cpu()
    channels_last = convolutional(net) and not data.is_text
    with torch.no_grad(), one_thread(images.device):
        try:
            try:
                x = prepare(_lying(images, channels_last), dtype=dtype)
                logits = net.eval()(x)
            except RuntimeError:
                if not channels_last:
                    raise
                # .view(len(x), -1) after a convolution: such a network gets its images as N,C,H,W
                channels_last, x = False, prepare(_lying(images, False), dtype=dtype)
                logits = net(x)
        except RuntimeError as error:
            kind = "windows" if data.is_text else "images"
            raise ValueError(
                f"the network does not take {kind} of shape {data.shape}, as {data.name!r} has: {error}"
            ) from error
        if labels and logits.shape[1:] != (data.num_classes,):
            raise ValueError(
                f"the network gives {logits.shape[-1]} logits, but {data.name!r} has {data.num_classes} classes"
            )
        drawn = [_draws(net.train(mode), layers, x) for mode in (True, False)]
    return Probe(channels_last, any(layer.p > 0 for layer in layers), *drawn)


def _lying(images: Tensor, channels_last: bool) -> Tensor:
    """The images in the memory of a batch; for a single channel the strides, too, are those of training."""
    if not channels_last:
        return images.clone(memory_format=torch.contiguous_format)
    return images.permute(0, 2, 3, 1).index_select(0, torch.arange(len(images))).movedim(-1, -3)


def _draws(net: nn.Module, layers: list, x: Tensor) -> bool:
    """Whether two forward passes differ, or torch's generator has moved, the masks of dropout layers being the same."""
    outputs, moved = [], False
    for seed in (0, 1):
        with own_generator(seed):
            turn(layers, torch.tensor(0), 0)
            before = torch.get_rng_state()
            try:
                outputs.append(net(x))
            except (RuntimeError, ValueError):  # what does not train on two images is told of by the first round
                return False
            moved |= not torch.equal(before, torch.get_rng_state())
    first, second = outputs
    return moved or isinstance(first, Tensor) and not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)

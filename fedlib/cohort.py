"""Many clients as one matrix: row k of W, shape (K, P), is client k's copy of the network.

The clients of a round start from the same vector w and do not talk until it ends, so local training is the same
arithmetic on K independent rows. How the rows get their gradients changes no number beyond rounding:

- ``"clients"``: row by row, ordinary autograd on an ordinary module whose parameters are views of the row. On a CPU the
  rows are spread over worker threads with one intra-op thread each; on a GPU over streams.
- ``"stacked"``: many rows at once, ``torch.vmap`` over ``torch.func.functional_call``. It divides the cost of launching
  an operation by the number of rows, which is what counts for small networks.

On a GPU local training is done in blocks of steps, each of which is recorded as a CUDA graph where it comes again
(:mod:`fedlib.accelerator`).
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from fedlib import accelerator
from fedlib.data import augment, distort, prepare
from fedlib.dropout import keyed, mixed, own_generator, turn
from fedlib.fused import Rate, arm
from fedlib.norms import Units
from fedlib.workers import Workers, slices

BLOCK = 32  # local steps that a GPU is given at a time: a whole round could be a million operations
TOGETHER = 512  # images of one client that are made ready at a time
OF_ALL_METHODS = ("weight_decay", "clip", "annealing")  # numbers that any method can be run with

Loss = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Any]], Tensor]
Transformation = Callable[[Tensor, Tensor, "Local"], Tensor]


class Layout:
    """Where each parameter and each floating-point buffer of a module lies in its row.

    A parameter row has ``P`` columns and a buffer row (batch-norm statistics) has ``Q``, both in the order of
    ``named_parameters()`` and ``named_buffers()``. Integer buffers are not part of a row.
    """

    def __init__(self, module: nn.Module):
        self.parameters = {name: p.shape for name, p in module.named_parameters()}
        self.buffers = {name: b.shape for name, b in module.named_buffers() if b.is_floating_point()}
        self.P = sum(shape.numel() for shape in self.parameters.values())
        self.Q = sum(shape.numel() for shape in self.buffers.values())

    @staticmethod
    def _split(rows: Tensor, shapes: dict[str, torch.Size]) -> list[Tensor]:
        ends = list(itertools.accumulate((shape.numel() for shape in shapes.values()), initial=0))
        columns = [rows[..., a:b] for a, b in itertools.pairwise(ends)]
        return [c.reshape(*rows.shape[:-1], *shape) for c, shape in zip(columns, shapes.values(), strict=True)]

    def views(self, rows: Tensor) -> list[Tensor]:
        """The parameters that lie in ``rows`` (..., P), each of shape ``(..., *its_shape)``, sharing memory with it."""
        return self._split(rows, self.parameters)

    def buffer_views(self, rows: Tensor) -> list[Tensor]:
        """The buffers that lie in ``rows`` (..., Q), sharing memory with it."""
        return self._split(rows, self.buffers)

    def read(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """A module's parameters and buffers as new rows of shape (P,) and (Q,)."""
        parameters, buffers = _tensors(module, self)
        none = parameters[0].detach().new_zeros(0)
        flat = [torch.cat([none, *(t.detach().reshape(-1) for t in ts)]) for ts in (parameters, buffers)]
        return flat[0], flat[1]

    def bind(self, module: nn.Module, row: Tensor, buffers: Tensor) -> list[nn.Parameter]:
        """Make the module live in the row: its tensors become views of it. Returns its parameters."""
        own, own_buffers = _tensors(module, self)
        for tensor, view in zip(own, self.views(row), strict=True):
            tensor.data = view
        for tensor, view in zip(own_buffers, self.buffer_views(buffers), strict=True):
            tensor.data = view
        return own

    def units(self) -> Units:
        """The output units of a parameter row from left to right: (how many, columns of each), equal ones together.

        A unit is one index of a weight's first dimension (an output channel, a neuron), or a parameter of fewer than
        two dimensions as a whole (a bias, the scale of a norm).
        """
        each = [
            (shape[0], shape[1:].numel()) if len(shape) > 1 else (1, shape.numel())
            for shape in self.parameters.values()
        ]
        runs = itertools.groupby(each, key=lambda run: run[1])
        return tuple((sum(number for number, _ in run), size) for size, run in runs)

    def frozen(self, module: nn.Module) -> Tensor | None:
        """bool (P,), the columns of the parameters that do not learn (``requires_grad``); None where all do."""
        mask = torch.cat([torch.full((p.numel(),), not p.requires_grad) for p in module.parameters()])
        return mask if mask.any() else None

    def columns(self, names: Collection[str], device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Column numbers, in a parameter row and in a buffer row, of the tensors with the given names."""
        result = []
        for shapes in (self.parameters, self.buffers):
            owner = [torch.full((shape.numel(),), name in names) for name, shape in shapes.items()]
            mask = torch.cat(owner) if owner else torch.zeros(0, dtype=torch.bool)
            result.append(mask.nonzero().flatten().to(device))
        return result[0], result[1]


def _tensors(module: nn.Module, layout: Layout) -> tuple[list[nn.Parameter], list[Tensor]]:
    buffers = dict(module.named_buffers())
    return list(module.parameters()), [buffers[name] for name in layout.buffers]


@dataclass(frozen=True)
class Batches:
    """What every row of a round or a wave trains on, drawn beforehand so that no engine and no chunking can change it.

    Attributes:
        index: int64 (R, T, B), positions in the training set; padded with 0 beyond ``size``.
        size: T lists of R ints, the batch size of each row at each step; 0 for a client that has finished.
        shift: int64 (R, T, B, 2) or None, where the crop of each image starts.
        flip: bool (R, T, B) or None, which images are mirrored.
        view: float (R, T, B, 7) or None, how each image is distorted; see :func:`fedlib.data.distort`.
        key: int64 (R,) or None, what the masks of dropout follow; see :mod:`fedlib.dropout`.
    """

    index: Tensor
    size: list[list[int]]
    shift: Tensor | None = None
    flip: Tensor | None = None
    view: Tensor | None = None
    key: Tensor | None = None

    def take(self, rows: Tensor) -> Batches:
        """The same for some of the rows, in ascending order; ``rows`` lies on the CPU."""
        if len(rows) == len(self.index):
            return self
        size = [[steps[r] for r in rows.tolist()] for steps in self.size]
        given, here = (self.shift, self.flip, self.view, self.key), accelerator.sent(rows, self.index.device)
        return Batches(self.index[here], size, *(None if t is None else t[here] for t in given))

    def steps(self, some: slice) -> Batches:
        """The same for some of the steps."""
        if some == slice(0, len(self.size)):
            return self
        given = (self.shift, self.flip, self.view)
        return Batches(
            self.index[:, some], self.size[some], *(None if t is None else t[:, some] for t in given), key=self.key
        )


@dataclass
class Local:
    """What a client may look at while it takes a step; R rows, one a client.

    Attributes:
        run, client: int64 (R,), which run of the sweep and which client each row is.
        steps: (R, 1), the number of local steps of each row.
        counts: (R, C), training images of each class that the client holds.
        global_rows: (S, P), the global vector of each run. ``w`` is the row each client started from.
        numbers: name -> (R, 1), what ``local[name]`` gives: ``lr``; ``weight_decay`` and ``clip``, where any row uses
            them; and the method's own settings.
        units: what is an output unit in a row; see :meth:`Layout.units`.
        server_rows: name -> (S, P), what the server told every client (a control variate, say).
        client_rows: name -> (R, P), what each client kept from its earlier rounds.
    """

    run: Tensor
    client: Tensor
    steps: Tensor
    counts: Tensor
    global_rows: Tensor
    numbers: dict[str, Tensor]
    units: Units = ()
    server_rows: dict[str, Tensor] = field(default_factory=dict)
    client_rows: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def alone(cls, w: Tensor, lr: float | Tensor = 1.0, **numbers: float | Tensor) -> Local:
        """Clients outside a federation, to look at a single step: each started from its row of ``w`` (R, P).

        Numbers are one for all rows or (R, 1).
        """
        rows, one = torch.arange(len(w)), w.new_ones(len(w), 1)
        given = {name: one * number for name, number in {"lr": lr, **numbers}.items()}
        return cls(rows, rows, steps=one, counts=one, global_rows=w, numbers=given)

    def __getitem__(self, name: str) -> Tensor:
        """(R, 1), a number of each row."""
        if name not in self.numbers:
            raise KeyError(
                f"no number {name!r} here; there are {', '.join(self.numbers)} (a float in Algorithm.settings)"
            )
        return self.numbers[name]

    @cached_property
    def w(self) -> Tensor:
        """(R, P), the global vector that each row started from (in columns that stay at home, it started elsewhere)."""
        return self._of_run(self.global_rows)

    @cached_property
    def server(self) -> dict[str, Tensor]:
        """name -> (R, P), the server's rows, one for each client."""
        return {name: self._of_run(rows) for name, rows in self.server_rows.items()}

    @cached_property
    def told(self) -> dict[str, Tensor]:
        """What the objective of each client is told: ``counts`` (R, C) and every number (R,) of its method."""
        own = {name: column[:, 0] for name, column in self.numbers.items() if name not in ("lr", *OF_ALL_METHODS)}
        return {"counts": self.counts, **own}

    def _of_run(self, rows: Tensor) -> Tensor:
        return rows.expand(len(self.run), -1) if len(rows) == 1 else rows[self.run]

    def take(self, rows: slice | Tensor) -> Local:
        """The same for some of the rows."""
        some = {name: getattr(self, name)[rows] for name in ("run", "client", "steps", "counts")}
        numbers, kept = ({n: value[rows] for n, value in of.items()} for of in (self.numbers, self.client_rows))
        return replace(self, numbers=numbers, client_rows=kept, **some)


@dataclass(frozen=True)
class Travels:
    """What of a network does not travel in a round, by the names of its tensors.

    Attributes:
        at_home: parameters and buffers that each client has for itself; the same in every round.
        absent: parameters that the round does without: they are not sent to the clients.
    """

    at_home: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Stage:
    """What round ``t`` trains and what of it travels: asked once, handed to clients, server and whoever counts bytes.

    Attributes:
        prepare: puts a network into the round's training mode: what learns, which of its blocks run.
        key: equal for stages whose training steps consist of the same operations.
        frozen: bool (P,) on the device, the columns that stand still; None where all learn.
        at_home, buffers_at_home: columns, of a parameter row and of a buffer row, that never leave a client.
        absent: columns of a parameter row that are not sent to the clients.
    """

    t: int
    prepare: Callable[[nn.Module, int], object]
    key: Hashable
    frozen: Tensor | None
    at_home: Tensor
    buffers_at_home: Tensor
    absent: Tensor

    def __call__(self, net: nn.Module) -> nn.Module:
        """The network itself, put into this stage."""
        self.prepare(net, self.t)
        return net

    def count(self, layout: Layout, messages: int) -> tuple[int, int]:
        """How many numbers a client gets (all but what is its own or absent) and sends (what has learned).

        Args:
            messages: vectors of the network's size that travel each way.
        """
        own = torch.zeros(layout.P, dtype=torch.bool)
        own[self.at_home.cpu()] = True
        up, down = own if self.frozen is None else own | self.frozen.cpu(), own.clone()
        down[self.absent.cpu()] = True
        buffers = layout.Q - len(self.buffers_at_home)
        return messages * int((~down).sum()) + buffers, messages * int((~up).sum()) + buffers


class Stages:
    """``stages(t)`` is the stage of round t; what does not change from round to round is made once.

    Args:
        net: asked in a copy. It is put into training mode and learns what it learned when it came.
        travels: ``(net, t) -> Travels``, which may change that: put modules into evaluation mode, freeze parameters,
            choose the blocks that run. None: everything travels and trains in every round.
    """

    def __init__(
        self, net: nn.Module, travels: Callable[[nn.Module, int], Travels] | None, device: torch.device | str = "cpu"
    ):
        self.net, self.layout, self.travels, self.device = copy.deepcopy(net), Layout(net), travels, device
        self.learns = [p.requires_grad for p in net.parameters()]
        self.last: Stage | None = None
        self.at_home: tuple[Tensor, ...] = ()  # columns of the last one, on the CPU

    def __call__(self, t: int) -> Stage:
        if self.last is None or self.travels is not None:
            travels = self._prepare(self.net, t)
            key = (_mode(self.net), travels)
            if self.last is None or self.last.key != key:
                self.last = self._make(t, key, travels)
        self.last = replace(self.last, t=t)
        return self.last

    def _prepare(self, net: nn.Module, t: int) -> Travels:
        for parameter, learns in zip(net.train().parameters(), self.learns, strict=True):
            parameter.requires_grad_(learns)
        return Travels() if self.travels is None else self.travels(net, t)

    def _make(self, t: int, key: Hashable, travels: Travels) -> Stage:
        frozen = self.layout.frozen(self.net)
        at_home, absent = (self.layout.columns(names, "cpu") for names in (travels.at_home, travels.absent))
        before, self.at_home = self.at_home, at_home
        if not all(map(torch.equal, before, at_home)):
            raise ValueError(f"what stays at home must be the same in every round, but round {t + 1} has other names")
        frozen = None if frozen is None else accelerator.sent(frozen, self.device)
        own, own_buffers, without = (accelerator.sent(columns, self.device) for columns in (*at_home, absent[0]))
        return Stage(t, self._prepare, key, frozen, own, own_buffers, without)


def _mode(net: nn.Module) -> tuple[Hashable, ...]:
    """What decides, beside the shapes, which operations a training step consists of.

    A module of which not everything runs in every round says so in a method ``stage() -> hashable``.
    """
    modules = list(net.modules())
    return (
        tuple(m.training for m in modules),
        tuple(p.requires_grad for p in net.parameters()),
        tuple(stage() for m in modules if callable(stage := getattr(m, "stage", None))),
    )


def convolutional(net: nn.Module) -> bool:
    """Whether a network has convolutions, which are faster on images that lie as N,H,W,C in memory."""
    return any(p.dim() > 2 for p in net.parameters())


class _LocalLoss(nn.Module):
    """The objective as a module, so that ``functional_call`` can swap the network's tensors underneath it."""

    def __init__(self, net: nn.Module, loss: Loss):
        super().__init__()
        self.net, self.loss, self.dropout = net, loss, keyed(net)
        self.rate, self.fused = Rate(), frozenset()  # of dense layers that step by themselves: see Trainer

    def forward(self, x: Tensor, y: Tensor, told: dict[str, Tensor], key: Tensor | None, step: int | Tensor) -> Tensor:
        if key is not None:
            turn(self.dropout, key, step)
        return self.loss(self.net, x, y, told)


class Trainer:
    """Trains the rows of a cohort: ``trainer(W, buffers, batches, local)`` changes W and the buffers in place.

    Args:
        net: the network; copied, its weights are not used.
        loss: ``loss(net, x, y, told) -> scalar``, what one client minimises on one batch; see :attr:`Local.told`.
        direction: row transformations applied in turn to the gradients G (R, P); a step is ``W -= lr * G``. None of
            them: plain SGD, ``W -= lr * (G + weight_decay * W)``.
        images: uint8 (N, C, H, W), stored N,H,W,C, or the windows (N, L) of a text; ``labels`` int64 (N,).
        normalisation: (mean, std) per channel, or None to leave images in [0, 1].
        padding: of the random crop, in pixels, when ``Batches.shift`` is given.
        engine: ``"clients"`` or ``"stacked"``.
        chunk: rows trained together by the stacked engine; halved, with a warning, when a GPU's memory does not hold
            them.
        workers: CPU threads that share the rows or chunks. The result has the same bits for any number of them.
        autocast: dtype of autocast, or None.
        tf32: whether a GPU may round the factors of products to 10 bits, in the network and nowhere else.
        draws: the network draws random numbers that are not dropout's. Engine "clients" with one worker then gives the
            global generators a state of their own for each row.
        channels_last: whether images lie as N,H,W,C in memory; default: where the network has convolutions.
        fused: names of dense layers that take the steps of plain SGD by themselves, client by client on a CPU; see
            :func:`fedlib.fused.fitting`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        direction: Sequence[Transformation] = (),
        *,
        images: Tensor,
        labels: Tensor,
        normalisation: tuple | None = None,
        padding: int = 4,
        engine: str = "clients",
        chunk: int = 16,
        workers: Workers | None = None,
        autocast: torch.dtype | None = None,
        tf32: bool = False,
        draws: bool = False,
        channels_last: bool | None = None,
        fused: Collection[str] = (),
    ):
        self.layout = Layout(net)
        self.direction = tuple(direction)
        self.text = images.dim() == 2
        # Batches lie in memory as the network likes it: N,H,W,C for convolutions, N,C,H,W for layers that flatten it.
        self.channels_last = not self.text and (convolutional(net) if channels_last is None else channels_last)
        self.strict = not self.channels_last and convolutional(net)
        self.images = images.permute(0, 2, 3, 1) if self.channels_last else images.contiguous()
        self.labels = labels
        self.mean, self.std = normalisation or (None, None)
        self.padding, self.engine, self.chunk = padding, engine, chunk
        self.names = [f"net.{name}" for name in (*self.layout.parameters, *self.layout.buffers)]
        self.autocast, self.tf32 = autocast, tf32
        self.dtype = next(net.parameters()).dtype
        self.workers = workers or Workers(device=images.device)
        # One module a worker: binding a module to a row changes the module, so threads must not share one.
        # On the device with all it has, buffers of whole numbers too, which are no part of a row.
        nets = [copy.deepcopy(net).train().to(images.device) for _ in range(self.workers.count)]
        self.losses = [_LocalLoss(net, loss) for net in nets]
        if engine == "clients" and not self.direction and images.device.type == "cpu" and autocast is None:
            for loss_of in self.losses:
                loss_of.fused = arm(loss_of.net, fused, loss_of.rate)
        self.draws = draws
        # A recording would replay the generator's state.
        self.recordings = accelerator.Recordings(possible=not draws)
        self.numbers = accelerator.Numbers(images.device)
        self.key: Hashable = None
        self.frozen: Tensor | None = None
        self.enter(Stages(net, None, images.device)(0))

    def enter(self, stage: Stage) -> None:
        """Train what this stage trains from here on."""
        for loss_of in self.losses:
            stage(loss_of.net)
        if self.key != stage.key:
            self.key, self.frozen = stage.key, stage.frozen

    def __call__(self, W: Tensor, buffers: Tensor, batches: Batches, local: Local) -> Tensor:
        """Local training of all R rows.

        Returns:
            (R,) the mean training loss of each row over its local steps.
        """
        if accelerator.on(W):
            with accelerator.guard(W.device), accelerator.tf32(self.tf32, W.device):
                losses = self._train_in_blocks(W, buffers, batches, local)
        else:
            losses = self._train_on_threads(W, buffers, batches, local)
        return losses / local.steps[:, 0].clamp(min=1)

    def _jobs(self, R: int) -> tuple[Callable, list[slice]]:
        size = self.chunk if self.engine == "stacked" else 1
        train = self._train_stacked if self.engine == "stacked" else self._train_client
        return train, slices(R, size)

    def _train_in_blocks(self, W: Tensor, buffers: Tensor, batches: Batches, local: Local) -> Tensor:
        """A few steps of all rows at a time, on tensors that lie where they lay in the round before."""
        self.recordings.begin(W.shape)
        held = self.recordings.held
        rows = (held("W", W), held("buffers", buffers), held("losses", W.new_zeros(len(W))))
        local = _mapped(local, lambda name, tensor: held(("local", name), tensor))
        for some in slices(len(batches.size), BLOCK):
            here = _mapped(batches.steps(some), lambda name, tensor: held(("batches", name), tensor))
            first = held("first", W.new_full((), some.start, dtype=torch.int64))
            key = (self.key, self.chunk, str(here.size), tuple((t.shape, t.dtype) for t in _leaves(local, here)))
            work = partial(self._train_block, *rows, here, local, first)
            # Nobody may ask `local.w` here, which is cached: a recording would read this round's in every later one.
            streams = min(accelerator.STREAMS, len(W)) if self.engine == "clients" else 1
            why = self.recordings.do(key, work, rows, alive=(self.frozen, here, local), streams=streams)
            if why is not None:
                warnings.warn(f"local training runs without a CUDA graph, which is slower: {why}", stacklevel=4)
        W.copy_(rows[0])
        buffers.copy_(rows[1])
        return rows[2].clone()

    def _train_block(
        self, W: Tensor, buffers: Tensor, losses: Tensor, batches: Batches, local: Local, first: Tensor
    ) -> None:
        train, jobs = self._jobs(len(W))
        work = [
            partial(self._in_memory, train, self.losses[0], rows, W, buffers, batches, local, losses, first)
            for rows in jobs
        ]
        # Chunks are large, and what bounds their memory is that they follow one another.
        if self.engine == "clients":
            accelerator.side_by_side(work)
        else:
            for job in work:
                job()

    def _train_on_threads(self, W: Tensor, buffers: Tensor, batches: Batches, local: Local) -> Tensor:
        losses = W.new_zeros(len(W))
        train, jobs = self._jobs(len(W))
        queue = iter(jobs)

        def work(loss_of: _LocalLoss) -> None:
            # Every worker takes the next job when it is free; which worker trains a row changes no bit of it.
            for rows in queue:
                self._in_memory(train, loss_of, rows, W, buffers, batches, local, losses, 0)

        self.workers.map(work, self.losses)
        return losses

    def _in_memory(
        self,
        train: Callable,
        loss_of: _LocalLoss,
        rows: slice,
        W: Tensor,
        buffers: Tensor,
        batches: Batches,
        local: Local,
        losses: Tensor,
        first: int | Tensor,
    ) -> None:
        """Train the rows together; if the device's memory does not hold that, from the start in two halves."""
        size = rows.stop - rows.start
        before = [t[rows].clone() for t in (W, buffers, losses)] if size > 1 else []
        try:
            return train(loss_of, rows, W, buffers, batches, local, losses, first)
        except torch.cuda.OutOfMemoryError:
            if size == 1 or accelerator.on(W) and accelerator.recording():
                raise
        # Not in the except clause: there the error still holds the tensors of the step that failed.
        for tensor, was in zip((W, buffers, losses), before, strict=True):
            tensor[rows] = was
        half = (size + 1) // 2
        if half < self.chunk:
            warnings.warn(
                f"the memory of {W.device} does not hold the training of {size} clients together: from here "
                f"on {half} at a time",
                stacklevel=2,
            )
            self.chunk = half
        if accelerator.on(W):
            accelerator.tidy()
        for part in (slice(rows.start, rows.start + half), slice(rows.start + half, rows.stop)):
            self._in_memory(train, loss_of, part, W, buffers, batches, local, losses, first)

    def _batch(self, batches: Batches, rows: slice | Tensor | int, t: int | slice, size: int) -> tuple[Tensor, Tensor]:
        """Images, float (..., B, C, H, W) on the device, and labels (..., B) of some steps.

        Of a text, int64 (..., B, L) instead.
        """
        index = batches.index[rows, t, :size]
        # index_select copies whole images, where indexing copies their bytes one by one.
        x = self.images.index_select(0, index.flatten()).view(*index.shape, *self.images.shape[1:])
        if self.text:
            return x.long(), self.labels[index]
        if self.channels_last:
            x = x.movedim(-1, -3)
        if batches.shift is not None and batches.flip is not None:
            x = augment(x, batches.shift[rows, t, :size], batches.flip[rows, t, :size], self.padding)
            if self.strict:  # augment works on N,H,W,C, which the strides of a single channel still show
                x = x.clone(memory_format=torch.contiguous_format)
        x = prepare(x, self.mean, self.std, dtype=self.dtype)
        if batches.view is not None:
            with accelerator.tf32(False, x.device):  # 10 bits are less than a pixel
                x = distort(x, batches.view[rows, t, :size])
        return x, self.labels[index]

    def _client_batches(self, batches: Batches, r: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one row in turn, several made at a time: threads wait for each other at every operation."""
        sizes = [row[r] for row in batches.size]
        steps = next((t for t, size in enumerate(sizes) if not size), len(sizes))
        together = max(1, TOGETHER // batches.index.shape[2])
        for start in range(0, steps, together):
            some = slice(start, min(start + together, steps))
            x, y = self._batch(batches, r, some, batches.index.shape[2])
            for i, size in enumerate(sizes[some]):
                yield x[i, :size], y[i, :size]

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The context of forward passes."""
        device = self.images.device
        # Without its cache, because cached casts would not be part of a CUDA graph.
        casts = torch.autocast(device.type, self.autocast, self.autocast is not None, cache_enabled=False)
        with casts, accelerator.tf32(self.tf32, device):
            yield

    def _generator(self, key: Tensor | None, step: int | Tensor) -> AbstractContextManager:
        """What the network draws from in one step, where it draws."""
        if not self.draws or key is None:
            return nullcontext()
        return own_generator(int(mixed(key, step)), self.images.device)

    def _step(self, G: Tensor, W: Tensor, local: Local) -> None:
        for transform in self.direction:
            G = transform(G, W, local)
            if self.frozen is not None:  # at once, so that what stands still counts in no later transform's norm
                G = G.masked_fill(self.frozen, 0)
        W.sub_(local["lr"] * G)

    def _train_client(
        self,
        loss_of: _LocalLoss,
        rows: slice,
        W: Tensor,
        buffers: Tensor,
        batches: Batches,
        local: Local,
        losses: Tensor,
        first: int | Tensor,
    ) -> None:
        r, row, local = rows.start, W[rows], local.take(rows)
        parameters = self.layout.bind(loss_of.net, W[r], buffers[r])
        learning: list[Tensor] = [p for p in parameters if p.requires_grad]
        rate = self._rate(local)
        loss_of.rate.lr, loss_of.rate.decay = (None, 0.0) if accelerator.on(W) else rate
        told, total = {name: value[0] for name, value in local.told.items()}, 0.0
        key = None if batches.key is None else batches.key[r]
        for step, (x, y) in enumerate(self._client_batches(batches, r)):
            if key is not None:  # which dropout follows, as it follows the number of the step
                step = first + step
            with self.precision(), self._generator(key, step):
                loss = loss_of(x, y, told, key, step)
            # A dense layer that has stepped by itself has no gradient.
            gradients = torch.autograd.grad(loss, learning, allow_unused=True)
            total = total + loss.detach()
            if not self.direction:
                _descend(learning, gradients, rate, loss_of.rate.stepped)
            else:
                gradients = _with_zeros(gradients, parameters)
                self._step(torch.cat([g.reshape(1, -1) for g in gradients], dim=1), row, local)
        losses[r] += total

    @staticmethod
    def _rate(local: Local) -> tuple[Any, Any]:
        """Learning rate and weight decay of one client: tensors on a GPU, which numbers would make it wait for."""
        lr = local["lr"][0, 0]
        decay = local["weight_decay"][0, 0] if "weight_decay" in local.numbers else torch.zeros_like(lr)
        return (lr, decay) if accelerator.on(lr) else (lr.item(), decay.item())

    def _train_stacked(
        self,
        loss_of: _LocalLoss,
        rows: slice,
        W: Tensor,
        buffers: Tensor,
        batches: Batches,
        local: Local,
        losses: Tensor,
        first: int | Tensor,
    ) -> None:
        taken: dict[tuple[int, ...], Local] = {}
        for t, sizes in enumerate(batches.size):
            # Rows with batches of the same size go together: padding would disturb batch statistics.
            for size, numbers in _same(sizes, rows):
                members = numbers if isinstance(numbers, slice) else self.numbers(numbers)
                here, key = W[members], () if isinstance(numbers, slice) else tuple(numbers)
                if key not in taken:
                    taken[key] = local.take(members)
                loss = self._stacked_step(loss_of, here, buffers, members, batches, taken[key], t, size, first)
                losses[members] += loss
                if not isinstance(members, slice):
                    W[members] = here

    def _stacked_step(
        self,
        loss_of: _LocalLoss,
        W: Tensor,
        buffers: Tensor,
        members: slice | Tensor,
        batches: Batches,
        local: Local,
        t: int,
        size: int,
        first: int | Tensor,
    ) -> Tensor:
        x, y = self._batch(batches, members, t, size)
        # Copies, because vmap's batch norm updates a buffer in place only if its rows are contiguous.
        stats = [b.clone() for b in self.layout.buffer_views(buffers[members])]
        # .data, unlike detach(), does not share a version counter with the rows that other threads are changing.
        parameters = [
            v.requires_grad_(p.requires_grad)
            for v, p in zip(self.layout.views(W.data), loss_of.net.parameters(), strict=True)
        ]

        def loss_of_row(
            tensors: list[Tensor], x: Tensor, y: Tensor, told: dict[str, Tensor], key: Tensor | None
        ) -> Tensor:
            own = dict(zip(self.names, tensors, strict=True))
            return torch.func.functional_call(loss_of, own, (x, y, told, key, step))

        key, step = (None, t) if batches.key is None else (batches.key[members], first + t)
        with self.precision():
            each = torch.vmap(loss_of_row, in_dims=(0, 0, 0, 0, None if key is None else 0))
            loss = each([*parameters, *stats], x, y, local.told, key)
        learning = [p for p in parameters if p.requires_grad]
        gradients = torch.autograd.grad(loss.sum(), learning, allow_unused=True, materialize_grads=True)
        if not self.direction:
            _descend_together([p.data for p in learning], gradients, local)
        else:
            gradients = _with_zeros(gradients, parameters)
            self._step(torch.cat([g.flatten(1) for g in gradients], dim=1), W, local)
        if stats:
            buffers[members] = torch.cat([b.flatten(1) for b in stats], dim=1)
        return loss.detach()


def _descend(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rate: tuple[Any, Any], stepped: set[Tensor]
) -> None:
    """A step of plain SGD of all parameters but those that have taken it by themselves; unused ones only decay."""
    lr, decay = rate
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if p not in stepped]
    stepped.clear()
    if not pairs:
        return
    some, own = [p for p, _ in pairs], [torch.zeros_like(p) if g is None else g for p, g in pairs]
    with torch.no_grad():
        if isinstance(lr, Tensor):
            torch._foreach_mul_(some, 1 - lr * decay)
            torch._foreach_add_(some, torch._foreach_mul(own, -lr))
        else:
            if decay:
                torch._foreach_mul_(some, 1 - lr * decay)
            torch._foreach_add_(some, own, alpha=-lr)


def _descend_together(parameters: Sequence[Tensor], gradients: Sequence[Tensor], local: Local) -> None:
    """A step of plain SGD of every row, tensor by tensor: put into rows, gradients would be copied twice more."""
    for p, g in zip(parameters, gradients, strict=True):
        column = (-1, *[1] * (p.dim() - 1))
        if "weight_decay" in local.numbers:
            g = g + local["weight_decay"].view(column) * p
        p.sub_(local["lr"].view(column) * g)


def _with_zeros(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the parameters that learn, with zeros in the places of those that do not, or are not used."""
    rest = iter(gradients)
    own = [next(rest) if p.requires_grad else None for p in parameters]
    return [torch.zeros_like(p) if g is None else g for g, p in zip(own, parameters, strict=True)]


def _leaves(*records: Batches | Local) -> list[Tensor]:
    """The tensors of dataclasses, those in their dictionaries included, in order."""
    found: list[Tensor] = []
    for record in records:
        _mapped(record, lambda _, tensor: found.append(tensor))
    return found


def _mapped(record: Any, function: Callable[[str, Tensor], Any]) -> Any:
    """The same dataclass with function(name, tensor) in the place of each tensor, also of those in its dictionaries."""

    def swap(name: str, value: object) -> object:
        if isinstance(value, dict):
            return {key: swap(f"{name}, {key}", one) for key, one in value.items()}
        return function(name, value) if isinstance(value, Tensor) else value

    return replace(record, **{f.name: swap(f.name, getattr(record, f.name)) for f in fields(record)})


def _same(sizes: list[int], rows: slice) -> Iterator[tuple[int, slice | list[int]]]:
    """Groups of rows with equal, non-zero batch sizes: (size, the slice itself or the row numbers)."""
    here = sizes[rows]
    for size in sorted(set(here) - {0}, reverse=True):
        members = [rows.start + i for i, s in enumerate(here) if s == size]
        yield size, rows if len(members) == len(here) else members

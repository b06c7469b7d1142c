"""What fedlib asks of a GPU. All of it stands here, so that a test can put another device in its place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

KIND = "cuda"
STREAMS = 10  # that clients are spread over
GRAPHS = 8  # that are kept; the one whose last use is longest ago goes,
PATIENCE = 64  # unless it was used among the last so many pieces of work: else some that take turns would all go
TRIED = 4096  # pieces of work that are remembered
ALIGNED = 32  # numbers to which rows are filled up
SHAPES = 4  # of the rows that are trained: more of them, with a place of its own for each, would fill the memory
SPARE = 1.2  # free memory that a recording must find, in units of what the work took unrecorded


def on(thing: Tensor | torch.device) -> bool:
    """Whether a tensor or a device is one of this kind."""
    return (thing.device if isinstance(thing, Tensor) else thing).type == KIND


def there() -> bool:
    """Whether this machine has one."""
    return torch.cuda.is_available()


def has_bf16(device: torch.device) -> bool:
    """Whether it computes in bfloat16 by itself; where it is only emulated (a T4), it is slower than float32."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def guard(device: torch.device) -> AbstractContextManager:
    """Streams, graphs and kernels in here belong to this device, which need not be the first of its kind."""
    return torch.cuda.device(device) if on(device) else nullcontext()


def free(device: torch.device) -> int:
    """Bytes of its memory that a tensor could have."""
    with torch.cuda.device(device):
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def wait(device: torch.device) -> None:
    """Until it has done all that it was told."""
    torch.cuda.synchronize(device)


def tidy() -> None:
    """Give back what the allocator keeps for later."""
    torch.cuda.empty_cache()


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU's on a device; the host does not wait until it is there."""
    if not on(torch.device(device)):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Numbers:
    """Lists of whole numbers as int64 tensors on a device, each of them made once."""

    def __init__(self, device: torch.device | str):
        self.device = device
        self.made: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, numbers: Iterable[int]) -> Tensor:
        key = tuple(numbers)
        if key not in self.made:
            self.made[key] = sent(torch.tensor(key, dtype=torch.int64), self.device)
        return self.made[key]


@contextmanager
def tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    """Whether products and convolutions of float32 numbers may be made of numbers with 10 bits; as before, afterwards.

    torch's own default is yes for convolutions and no for products. On another device there is nothing to switch.
    """
    if not on(device):
        yield
        return
    switches: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was


def side_by_side(jobs: Iterable[Callable[[], object]]) -> None:
    """Do the jobs on streams of their own: the small kernels of one leave most of a GPU idle."""
    main, streams = torch.cuda.current_stream(), _streams(torch.cuda.current_device())
    for stream in streams:
        stream.wait_stream(main)
    try:
        for number, job in enumerate(jobs):
            with torch.cuda.stream(streams[number % STREAMS]):
                job()
    finally:  # also after an error: what comes next may write where a stream still writes
        for stream in streams:
            main.wait_stream(stream)


@cache
def _streams(device: int, number: int = STREAMS) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(number)]


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error (RuntimeError) wherever the host would wait for the device: such work cannot be recorded."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def peak(device: torch.device) -> Iterator[list[int]]:
    """A list that afterwards holds the bytes that the work in here took at once, beyond what was there."""
    took: list[int] = []
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield took
    took.append(torch.cuda.max_memory_allocated(device) - before)


def recording() -> bool:
    """Whether what is done now is recorded."""
    return torch.cuda.is_current_stream_capturing()


class Recording:
    """Kernels that were recorded once, and run again without the host: a CUDA graph."""

    def __init__(self, work: Callable[[], object], pool: Any):
        self.graph = torch.cuda.CUDAGraph()
        # A stream of this device: torch's own one for recordings belongs to the device that was used first.
        (stream,) = _streams(torch.cuda.current_device(), 1)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            work()

    def replay(self) -> None:
        self.graph.replay()


def pool() -> Any:
    """Memory that recordings share which are not replayed at the same time."""
    return torch.cuda.graph_pool_handle()


@dataclass
class Recordings:
    """Work that is recorded where it comes again, since launching small kernels takes longer than running them.

    Work is done as it comes the first time that its key is met, and an error where it waits for the device: then it
    could not be recorded, and a recording that fails leaves torch's allocator and generators in disorder. It is
    recorded the second time, and replayed from then on. What it reads and writes must lie where it lay: :meth:`held`.

    Attributes:
        possible: False once something has waited: from there on all work is done as it comes.
        made: recordings so far.
    """

    possible: bool = True
    made: int = 0
    kept: OrderedDict[Hashable, tuple[Recording, object]] = field(default_factory=OrderedDict)
    used: dict[Hashable, int] = field(default_factory=dict)  # of those kept, when last
    done: int = 0  # pieces of work
    tried: dict[Hashable, int] = field(default_factory=dict)  # bytes that it took
    places: dict[Hashable, Tensor] = field(default_factory=dict)
    shapes: set[Hashable] = field(default_factory=set)
    pool: Any = None

    def held(self, name: Hashable, tensor: Tensor) -> Tensor:
        """The same numbers in a place that stays, for every tensor of this name, shape and type.

        The rows of a matrix begin at multiples of 128 bytes (of float32), which kernels read in larger pieces.
        """
        key = (name, tensor.shape, tensor.dtype)
        if key not in self.places:
            *before, last = tensor.shape if tensor.dim() == 2 else (*tensor.shape, 0)
            wide = -(-last // ALIGNED) * ALIGNED
            self.places[key] = tensor.new_empty(*before, wide)[:, :last] if last else torch.empty_like(tensor)
        return self.places[key].copy_(tensor)

    def begin(self, shape: Hashable) -> None:
        """A round of work of this shape: of too many different ones, all are forgotten, with the memory they hold."""
        if shape not in self.shapes and len(self.shapes) == SHAPES:
            self.forget()
            for own in (self.tried, self.places, self.shapes):
                own.clear()
        self.shapes.add(shape)

    def forget(self) -> None:
        """Give back the recordings, and the memory that they share."""
        self.kept.clear()
        self.used.clear()
        self.pool = None

    def do(
        self, key: Hashable, work: Callable[[], None], changed: Iterable[Tensor], alive: object = None, streams: int = 1
    ) -> str | None:
        """Do some work, by a recording if there is one.

        Args:
            key: equal for work that consists of the same operations on the same places.
            changed: what the work changes, which is put back where it has to begin again.
            alive: whatever else the recording reads, which must not be freed.
            streams: that the work is spread over; a recording cannot give the memory of one to another.

        Returns:
            Why the work cannot be recorded, the one time that it is found out; else None.
        """
        self.done += 1
        if key in self.kept:
            self.kept.move_to_end(key)
            self.used[key] = self.done
            self.kept[key][0].replay()
            return None
        device = next(iter(changed := list(changed))).device
        if self.possible and key not in self.tried:
            return self._try(key, work, changed, device)
        if not self.possible or self._full() or self.tried[key] * streams * SPARE > free(device):
            work()
            return None
        self.pool = pool() if self.pool is None else self.pool
        made = Recording(work, self.pool)
        self.kept[key], self.used[key], self.made = (made, alive), self.done, self.made + 1
        made.replay()
        return None

    def _full(self) -> bool:
        """Whether there is no room for another recording; makes some where one has not been used for long."""
        if len(self.kept) < GRAPHS:
            return False
        oldest = next(iter(self.kept))
        if self.done - self.used[oldest] <= PATIENCE:
            return True
        del self.kept[oldest], self.used[oldest]
        return False

    def _try(self, key: Hashable, work: Callable[[], None], changed: list[Tensor], device: torch.device) -> str | None:
        before, why = [tensor.clone() for tensor in changed], None
        try:
            with peak(device) as took, no_waiting():
                work()
        except torch.cuda.OutOfMemoryError:
            if not self.kept:
                raise
            self.forget()  # what they hold may be enough
            tidy()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            self.possible, why = False, str(error)
        else:
            if len(self.tried) == TRIED:
                self.tried.clear()
            self.tried[key] = took[0]
            return None
        wait(device)
        for tensor, was in zip(changed, before, strict=True):
            tensor.copy_(was)
        work()
        return why

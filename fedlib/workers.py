"""The cores of a CPU: how many there are, and threads that share them without changing a bit of a result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

beside_others = False  # True in a process of fedlib.side_by_side: the other cores belong to its neighbours


class Workers:
    """Threads that take jobs in turn, each with one intra-op thread; without a pool where there is one of them.

    Args:
        count: how many. What they compute has the same bits for any number of them.
        device: what the jobs work on. On a GPU there is one worker, which leaves torch's settings alone.
    """

    def __init__(self, count: int = 1, device: torch.device | None = None):
        self.count, self.device = count, device or torch.device("cpu")
        self._pool = ThreadPoolExecutor(count, "client", torch.set_num_threads, (1,)) if count > 1 else None

    def map(self, function: Callable, items: Iterable) -> list:
        """``[function(item) for item in items]``, on the threads where there are any."""
        with one_thread(self.device):
            return list((self._pool.map if self._pool else map)(function, items))

    def shares(self, count: int) -> list[slice]:
        """As many slices of ``range(count)`` as there are workers."""
        return slices(count, -(-count // self.count))


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One intra-op thread on a CPU: another number of them would change the last bits of a result."""
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def slices(count: int, size: int) -> list[slice]:
    """``range(count)`` in slices of ``size``, the last one as large as is left."""
    return [slice(a, min(a + size, count)) for a in range(0, count, size)]


def cores() -> int:
    """CPU cores this process may use; one beside others."""
    if beside_others:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

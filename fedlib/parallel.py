"""Independent trainings side by side, one process for each core of the CPU.

A sweep of small networks spends most of its time in Python, which runs on one core at a time, however many threads
there are. Two sweeps in two processes do not wait for each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Hashable, Iterable
from concurrent.futures import Executor, as_completed
from typing import Any

import torch
from tqdm import tqdm

from fedlib import accelerator, workers


def side_by_side(
    function: Callable[[Any], Any],
    keys: Iterable[Hashable],
    *,
    first: Collection[Hashable] = (),
    progress: bool | str = True,
    each: Callable[[Any, Any], object] = lambda key, result: None,
) -> dict[Hashable, Any]:
    """``{key: function(key) for key in keys}``, several at a time; it changes no bit of a :class:`fedlib.simulate.Run`.

    Where there is a CUDA GPU or a single core, the calls are made here, one after another. Elsewhere they are made in
    processes of their own: what ``function`` reads travels to them and what it returns travels back, but whatever else
    it changes is lost. It may be a lambda or a function of a notebook. Sweeps in it use one thread.

    Args:
        function: called with one key.
        keys: all different.
        first: the keys that take longest. They are begun first, so that none of them is left alone at the end.
        progress: show a progress bar over the keys; a string is its label.
        each: called here with a key and its result as soon as that is there: to save it, say.

    Returns:
        The results in the order of ``keys``.

    Raises:
        ValueError: if a key occurs twice.
        Exception: the first one that ``function`` raises. Its warnings are repeated here.
    """
    keys = list(keys)
    if len(set(keys)) < len(keys):
        raise ValueError(f"keys must differ from one another, got {keys!r}")
    cores = workers.cores()
    found: dict[Hashable, Any] = {}
    if min(cores, len(keys)) <= 1 or accelerator.there():
        for key in keys:
            found[key] = function(key)
            each(key, found[key])
        return found
    executor = _executor(cores)  # also for fewer keys: a pool of another size would begin its processes anew
    begun = {key: executor.submit(_in_process, function, key) for key in sorted(keys, key=lambda key: key not in first)}
    label, key_of = progress if isinstance(progress, str) else None, {future: key for key, future in begun.items()}
    try:
        with tqdm(total=len(keys), desc=label, unit="sweep", leave=False, disable=not progress) as bar:
            for future in as_completed(key_of):
                key = key_of[future]
                found[key], told = future.result()
                for warning in told:
                    warnings.warn(warning, stacklevel=2)
                each(key, found[key])
                bar.update()
    finally:
        for future in key_of:  # after an error nobody waits for the others
            future.cancel()
    return {key: found[key] for key in keys}


def warm_up() -> None:
    """Start the processes of :func:`side_by_side` in the background, which takes them some seconds of imports."""
    if workers.cores() > 1 and not accelerator.there():
        for _ in range(workers.cores()):
            _executor(workers.cores()).submit(int)


def _executor(processes: int) -> Executor:
    """Loky's, because Python's own cannot send a lambda or a function of a notebook; kept for the next call."""
    try:
        import loky  # here, because only the book's extra brings it
    except ImportError as error:
        raise ImportError('processes side by side need loky: install "fedlib[book]"') from error
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # What torch keeps after a large training, loky would take for a leak: it would begin a new process.
    env = {**threads, "LOKY_MAX_MEMORY_LEAK_SIZE": "1e12"}
    return loky.get_reusable_executor(processes, timeout=600, initializer=_begin_process, env=env)


def _begin_process() -> None:
    workers.beside_others = True
    torch.set_num_threads(1)


def _in_process(function: Callable[[Any], Any], key: Hashable) -> tuple[Any, list[Warning]]:
    """``function(key)`` and the warnings it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(key)
    return result, [
        w.message
        for w in caught
        if isinstance(w.message, Warning) and not issubclass(w.category, (DeprecationWarning, FutureWarning))
    ]

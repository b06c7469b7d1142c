"""Who trains in a round, on what: functions of (seed, round, client) alone.

No engine, wave, machine or other client can change them. Round t (0, 1, ...) of the run with a seed has these streams
of random numbers, each ``np.random.default_rng`` of

- ``[seed, t]``: the cohort;
- ``[seed, t, 1 + k]``: the batches of client k (0, 1, ...), which a client on a machine of its own can draw alone;
- ``[seed, t, 1 + k, 1]``: how the images of these batches are cropped and mirrored;
- ``[seed, t, 1 + k, 2]``: how they are distorted, for a method that looks at two views of each;
- ``[seed, t, 1 + k, 3]``: a key, of the masks of dropout in the client's network;
- ``[seed, t, 0, 1]``: what a method draws for all of them (:func:`fedlib.algorithms.layerwise`).

Clients count from 1 here because NumPy takes ``[seed, t, 0]`` for ``[seed, t]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedlib import accelerator
from fedlib.cohort import Batches

AUGMENTATIONS = ("crop", "flip", "flip+crop")
PADDING = 4  # pixels around an image before it is cropped at random


@dataclass
class Turn:
    """What one client trains on in one round: T steps of at most B images.

    Attributes:
        index: int64 (T, B), positions in the training set, padded with 0.
        size: the number of images of each step.
        shift, flip, view: (T, B, 2), (T, B) and (T, B, 7), or None; see :class:`fedlib.cohort.Batches`.
        key: what the masks of dropout follow, or None.
    """

    index: np.ndarray
    size: list[int]
    shift: np.ndarray | None
    flip: np.ndarray | None
    view: np.ndarray | None
    key: int | None


@dataclass(frozen=True)
class Schedule:
    """Draws the cohort of a round and what it trains on; see :class:`fedlib.simulate.Simulation` for the settings.

    Attributes:
        parts: positions of each client's images in the training set; or, where runs differ in it, seed -> those.
        clients_per_round: size of the cohort.
        augment: a word of ``AUGMENTATIONS``, or None.
        view: ``(rng, shape) -> (*shape, 7)``, how images are distorted, for a method whose batches hold every image
            twice (:func:`fedlib.data.distort`); None for images as they are.
        keys: whether the network draws random numbers, for which every client gets a key (:mod:`fedlib.dropout`).
    """

    parts: Sequence[np.ndarray] | Mapping[int, Sequence[np.ndarray]]
    clients_per_round: int
    batch_size: int
    local_steps: int | None = None
    local_epochs: int | None = None
    augment: str | None = None
    view: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None
    device: torch.device | str = "cpu"
    keys: bool = False

    def draw(self, seeds: Sequence[int], t: int) -> tuple[Tensor, Batches]:
        """Round t of the runs with these seeds, one after another in the rows of ``Batches``.

        Returns:
            clients, int64 (S, K), in ascending order; and their batches, of S * K rows.
        """
        return self.send(self.prepare(seeds, t))

    def send(self, drawn: tuple[Tensor, Batches]) -> tuple[Tensor, Batches]:
        """The same on ``device``."""
        clients, batches = drawn
        rows = {name: value for name, value in vars(batches).items() if isinstance(value, Tensor)}
        there = {name: accelerator.sent(value, self.device) for name, value in rows.items()}
        return accelerator.sent(clients, self.device), replace(batches, **there)

    def prepare(self, seeds: Sequence[int], t: int) -> tuple[Tensor, Batches]:
        """What :meth:`draw` gives, on the CPU; it can be drawn while another round trains."""
        cohorts = {seed: self.cohort(seed, t) for seed in dict.fromkeys(seeds)}
        drawn = {seed: [self.turn(seed, t, k) for k in cohort.tolist()] for seed, cohort in cohorts.items()}
        turns = [turn for seed in seeds for turn in drawn[seed]]
        T, B = (max(turn.index.shape[axis] for turn in turns) for axis in (0, 1))
        size = [[turn.size[i] if i < len(turn.size) else 0 for turn in turns] for i in range(T)]
        clients = torch.from_numpy(np.stack([cohorts[seed] for seed in seeds]))
        index = self._padded([turn.index for turn in turns], T, B)
        shift, flip, view = (
            self._any([getattr(turn, name) for turn in turns], T, B) for name in ("shift", "flip", "view")
        )
        key = torch.from_numpy(np.array([turn.key for turn in turns])) if self.keys else None
        return clients, Batches(index, size, shift, flip, view, key)

    def cohort(self, seed: int, t: int) -> np.ndarray:
        """int64 (K,), the clients of round t, in ascending order."""
        N, K = len(self._parts(seed)), self.clients_per_round
        return np.arange(N) if K == N else np.sort(np.random.default_rng([seed, t]).choice(N, K, replace=False))

    def turn(self, seed: int, t: int, k: int) -> Turn:
        """What client k trains on in round t, whoever else is in its cohort."""
        batches = local_batches(
            np.random.default_rng([seed, t, 1 + k]),
            self._parts(seed)[k],
            self.batch_size,
            local_steps=self.local_steps,
            local_epochs=self.local_epochs,
        )
        size = [len(batch) * (2 if self.view else 1) for batch in batches]
        index = np.zeros((len(batches), max(size)), np.int64)
        for row, batch in zip(index, batches, strict=True):
            own = np.repeat(batch, 2) if self.view else batch
            row[: len(own)] = own
        shift, flip = self._augmentation([seed, t, 1 + k, 1], index.shape)
        view = None if self.view is None else self.view(np.random.default_rng([seed, t, 1 + k, 2]), index.shape)
        key = int(np.random.default_rng([seed, t, 1 + k, 3]).integers(1 << 62)) if self.keys else None
        return Turn(index, size, shift, flip, view, key)

    def _parts(self, seed: int) -> Sequence[np.ndarray]:
        return self.parts[seed] if isinstance(self.parts, Mapping) else self.parts

    def _augmentation(self, stream: list[int], shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Where each image is cropped, and whether it is mirrored."""
        if self.augment is None:
            return None, None
        rng = np.random.default_rng(stream)
        crop = "crop" in self.augment
        shift = rng.integers(0, 2 * PADDING + 1, (*shape, 2)) if crop else np.full((*shape, 2), PADDING)
        return shift, rng.random(shape) < 0.5 if "flip" in self.augment else np.zeros(shape, bool)

    def _any(self, arrays: Sequence[np.ndarray | None], T: int, B: int) -> Tensor | None:
        there = [array for array in arrays if array is not None]
        return self._padded(there, T, B) if there else None

    def _padded(self, arrays: Sequence[np.ndarray], T: int, B: int) -> Tensor:
        """(R, T, B, ...), the arrays of R clients one above the other."""
        rows = np.zeros((len(arrays), T, B, *arrays[0].shape[2:]), arrays[0].dtype)
        for row, array in zip(rows, arrays, strict=True):
            row[: array.shape[0], : array.shape[1]] = array
        return torch.from_numpy(rows)


def local_batches(
    rng: np.random.Generator,
    images: np.ndarray,
    batch_size: int,
    *,
    local_steps: int | None = None,
    local_epochs: int | None = None,
) -> list[np.ndarray]:
    """The batches of one client in one round, in order.

    A loop that draws this for each client k of a cohort, from ``np.random.default_rng([seed, t, 1 + k])``, trains on
    the same images.

    Args:
        images: positions of the client's images in the training set.
        local_steps, local_epochs: exactly one of them; see :class:`fedlib.simulate.Simulation`.

    Returns:
        Arrays of positions.
    """
    n = len(images)
    if local_steps is None:
        shuffled = [rng.permutation(images) for _ in range(local_epochs or 0)]
        return [order[a : a + batch_size] for order in shuffled for a in range(0, n, batch_size)]
    B = min(batch_size, n)
    per_pass = n // B
    shuffled = [rng.permutation(images) for _ in range(-(-local_steps // per_pass))]
    return [order[B * i : B * (i + 1)] for order in shuffled for i in range(per_pass)][:local_steps]

"""Who trains in a round, on what: functions of (seed, round) alone, so that no engine, wave or machine can change it.

The streams of random numbers, each ``np.random.default_rng`` of

- ``[seed, t]``: the cohort of round t, then the batches of each of its clients in turn;
- ``[seed, t, 1]``: how the images of these batches are cropped and mirrored;
- ``[seed, t, 2]``: how they are distorted, for a method that looks at two views of each.
- ``[seed, t, 3]``: a key for every client there is, of the masks of dropout in its network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlib.cohort import Batches

AUGMENTATIONS = ("crop", "flip", "flip+crop")
PADDING = 4  # pixels around an image before it is cropped at random


@dataclass(frozen=True)
class Schedule:
    """Draws the cohort of a round and what it trains on; see :class:`fedlib.simulate.Simulation` for the settings.

    Attributes:
        parts: positions of each client's images in the training set.
        clients_per_round: size of the cohort.
        augment: a word of ``AUGMENTATIONS``, or None.
        view: ``(rng, shape) -> (*shape, 7)``, how images are distorted, for a method whose batches hold every image
            twice (:func:`fedlib.data.distort`); None for images as they are.
        keys: whether the network draws random numbers, for which every client gets a key (:mod:`fedlib.dropout`).
    """

    parts: Sequence[np.ndarray]
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
        drawn = [self._draw_run(np.random.default_rng([seed, t])) for seed in seeds]
        clients = torch.from_numpy(np.stack([c for c, _ in drawn])).to(self.device)
        views = 2 if self.view else 1
        steps = [[np.repeat(batch, views) for batch in batches] for _, rows in drawn for batches in rows]
        T, B = max(map(len, steps)), max(len(b) for row in steps for b in row)
        index = np.zeros((len(steps), T, B), np.int64)
        for r, row in enumerate(steps):
            for i, batch in enumerate(row):
                index[r, i, : len(batch)] = batch
        size = [[len(row[i]) if i < len(row) else 0 for row in steps] for i in range(T)]
        shift, flip = self._draw_augmentation(seeds, t, index.shape, size)
        views, key = self._draw_views(seeds, t, index.shape, size), self._draw_keys(seeds, t, clients)
        return clients, Batches(self._there(index), size, shift, flip, views, key)

    def _draw_run(self, rng: np.random.Generator) -> tuple[np.ndarray, list[list[np.ndarray]]]:
        N, K = len(self.parts), self.clients_per_round
        clients = np.arange(N) if K == N else np.sort(rng.choice(N, K, replace=False))
        return clients, [
            local_batches(
                rng, self.parts[k], self.batch_size, local_steps=self.local_steps, local_epochs=self.local_epochs
            )
            for k in clients.tolist()
        ]

    def _draw_augmentation(
        self, seeds: Sequence[int], t: int, shape: tuple[int, int, int], sizes: list[list[int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Where each image is cropped, and whether it is mirrored; ``shape`` (R, T, B) is that of the batches."""
        if self.augment is None:
            return None, None
        shift, flip = np.full((*shape, 2), PADDING), np.zeros(shape, bool)
        for rows, own, rng in _own(seeds, t, sizes, stream=1):
            if "crop" in self.augment:
                shift[rows, : own[1], : own[2]] = rng.integers(0, 2 * PADDING + 1, (*own, 2))
            if "flip" in self.augment:
                flip[rows, : own[1], : own[2]] = rng.random(own) < 0.5
        return self._there(shift), self._there(flip)

    def _draw_views(
        self, seeds: Sequence[int], t: int, shape: tuple[int, int, int], sizes: list[list[int]]
    ) -> Tensor | None:
        """(R, T, B, 7), how each image of the batches is distorted."""
        if self.view is None:
            return None
        views = np.zeros((*shape, 7), np.float32)
        for rows, own, rng in _own(seeds, t, sizes, stream=2):
            views[rows, : own[1], : own[2]] = self.view(rng, own)
        return self._there(views)

    def _draw_keys(self, seeds: Sequence[int], t: int, clients: Tensor) -> Tensor | None:
        """int64 (R,), one for each client's round: a function of seed, round and client, whoever else is drawn."""
        if not self.keys:
            return None
        drawn = [np.random.default_rng([seed, t, 3]).integers(1 << 62, size=len(self.parts)) for seed in seeds]
        return self._there(np.stack(drawn)).gather(1, clients).flatten()

    def _there(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _own(
    seeds: Sequence[int], t: int, sizes: list[list[int]], stream: int
) -> Iterator[tuple[slice, tuple[int, int, int], np.random.Generator]]:
    """For each run: its rows of the cohort, the shape (K, T, B) it has when alone, and a generator of its own.

    The shape, because other runs of the sweep must not change how many numbers a run draws.
    """
    K = len(sizes[0]) // len(seeds)
    for i, seed in enumerate(seeds):
        rows = slice(K * i, K * i + K)
        own = [row[rows] for row in sizes if any(row[rows])]
        yield rows, (K, len(own), max(map(max, own))), np.random.default_rng([seed, t, stream])


def local_batches(
    rng: np.random.Generator,
    images: np.ndarray,
    batch_size: int,
    *,
    local_steps: int | None = None,
    local_epochs: int | None = None,
) -> list[np.ndarray]:
    """The batches of one client in one round, in order.

    A loop that draws from ``np.random.default_rng([seed, t])``, first the cohort, then this for each of its clients in
    turn, trains on the same images.

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

"""Random numbers that a network draws while it trains, made repeatable.

Torch's dropout asks one global generator, so its masks depend on who asked before: on the engine, on the threads, on
what the caller did. Here the mask of an element is a function of the key of its client's round, the step, the layer and
its place, which any engine, wave, machine and device computes alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

LOW = 0xFFFFFFFF  # 32 bits: their product with a constant of 31 fits the 64 of an integer tensor
ALPHA = -1.7580993408473766  # where SELU saturates: -scale * alpha, what AlphaDropout puts in the place of a number


def keyed(net: nn.Module) -> list[Keyed]:
    """Turn the dropout layers of a network into ones that follow a key, in place. Returns them."""
    for module in net.modules():
        if type(module) in KINDS:  # exactly these: a class of somebody's own may do something else
            module.__class__ = KINDS[type(module)]
    found = [module for module in net.modules() if isinstance(module, Keyed)]
    for number, module in enumerate(found):
        module.number = number
    return found


def turn(layers: list[Keyed], key: Tensor | int, step: int | Tensor) -> None:
    """Let the layers draw the masks of one local step of the client whose round has this key (int64, a scalar)."""
    for layer in layers:
        layer.key, layer.calls = mixed(torch.as_tensor(key), step), 0


def mixed(key: Tensor, number: int | Tensor) -> Tensor:
    """Another key, by a key and a number: 62 bits."""
    low, high = key & LOW, (key >> 32) & LOW
    low = _scrambled(low ^ _scrambled(high + 0x9E3779B9 * (number + 1)))
    return low | (_scrambled(high ^ low) & 0x3FFFFFFF) << 32


def uniform(key: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """float32 numbers in [0, 1), one for each place of ``shape``, in steps of 2**-24; a function of the key alone."""
    place = torch.arange(math.prod(shape), device=key.device).view(shape)
    bits = _scrambled(_scrambled(place ^ (key & LOW)) + (key >> 32))
    return (bits >> 8).to(torch.float32) * 2**-24


def _scrambled(x: Tensor) -> Tensor:
    """32 bits from the low 32 of an integer; the mixing of C. Wellons' lowbias32, whose bits all depend on all."""
    x = x & LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)


class Keyed(nn.Module):
    """What dropout layers that follow a key have in common; made by :func:`keyed` only."""

    p: float
    number = 0
    key: Tensor | None = None
    calls = 0  # of this layer in this step: a layer that stands in two places draws two masks

    def draw(self, x: Tensor) -> Tensor:
        """bool, which numbers stay; of shape (..., 1, 1) where a channel stays or goes as a whole."""
        if self.key is None:
            raise RuntimeError("a dropout layer was called before its key was given; see fedlib.dropout.turn")
        key = mixed(mixed(self.key, self.number), self.calls)
        self.calls += 1
        return uniform(key.to(x.device), self.places(x)) >= self.p

    def places(self, x: Tensor) -> tuple[int, ...]:
        """The shape of the mask."""
        return tuple(x.shape)


class KeyedDropout(Keyed, nn.Dropout):
    """``nn.Dropout``: each number is zero with probability p, and divided by 1 - p otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return torch.where(self.draw(x), x / (1 - self.p) if self.p < 1 else x, torch.zeros_like(x))


class _Channels(Keyed):
    """A channel as a whole. ``alone``: the dimensions of one example without a batch, as torch reads it."""

    alone = 0

    def places(self, x: Tensor) -> tuple[int, ...]:
        batch = 1 if x.dim() == self.alone else 2
        return (*x.shape[:batch], *[1] * (x.dim() - batch))


class KeyedDropout1d(_Channels, KeyedDropout):
    """``nn.Dropout1d``."""

    alone = 2


class KeyedDropout2d(_Channels, KeyedDropout):
    """``nn.Dropout2d``: torch reads three dimensions as (N, C, L), not as one image."""


class KeyedDropout3d(_Channels, KeyedDropout):
    """``nn.Dropout3d``."""

    alone = 4


class KeyedAlphaDropout(Keyed, nn.AlphaDropout):
    """``nn.AlphaDropout``: where SELU saturates instead of zero, then scaled to mean 0 and variance 1 as before."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return torch.zeros_like(x)
        a = ((1 - self.p) * (1 + self.p * ALPHA**2)) ** -0.5
        return a * torch.where(self.draw(x), x, torch.full_like(x, ALPHA)) - a * ALPHA * self.p


class KeyedFeatureAlphaDropout(_Channels, KeyedAlphaDropout):
    """``nn.FeatureAlphaDropout``."""


KINDS: dict[type[nn.Module], type[Keyed]] = {
    nn.Dropout: KeyedDropout,
    nn.Dropout1d: KeyedDropout1d,
    nn.Dropout2d: KeyedDropout2d,
    nn.Dropout3d: KeyedDropout3d,
    nn.AlphaDropout: KeyedAlphaDropout,
    nn.FeatureAlphaDropout: KeyedFeatureAlphaDropout,
}


@contextmanager
def own_generator(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """The global generators of torch, NumPy and Python begin at ``seed`` here, and go on afterwards as before."""
    device = torch.device(device)
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)

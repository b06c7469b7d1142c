"""The section "speed" of gpu_check.py: rounds/s of four of the book's shapes, and of a sweep against one run."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import noise, switch
from torch import Tensor, nn

import fedlib as fl
from fedlib import models

WARM = 4  # rounds that are not counted: two run eagerly, one is captured
FEWEST = 7  # rounds of a measurement


class Shape(NamedTuple):
    """A federation whose rounds are timed."""

    name: str
    model: Callable[[], nn.Module]
    data: fl.data.Data
    parts: Sequence[Tensor]
    clients_per_round: int
    local_steps: int
    batch_size: int


class Variant(NamedTuple):
    """A way to train it."""

    name: str
    engine: str
    precision: str = "float32"
    benchmark: bool = False
    capture: bool = True


VARIANTS = [
    Variant("stacked", "stacked"),
    Variant("clients", "clients"),
    Variant("stacked, cudnn.benchmark", "stacked", benchmark=True),
    Variant("stacked, TF32, benchmark", "stacked", "tf32", benchmark=True),
    Variant("clients, TF32, benchmark", "clients", "tf32", benchmark=True),
    Variant("stacked, bf16, benchmark", "stacked", "bf16", benchmark=True),
    Variant("clients, bf16, benchmark", "clients", "bf16", benchmark=True),
    Variant("stacked, eager", "stacked", capture=False),
]


def shapes(small: bool) -> list[Shape]:
    """The book's shapes; if ``small``, narrow networks and short rounds."""
    w, rgb = 8 if small else 64, (3, 32, 32)
    cifar, digits = noise(5000, rgb), noise(3715, (3, 28, 28))
    ten, hundred, five = (list(torch.arange(n).view(k, -1)) for n, k in ((5000, 10), (5000, 100), (3715, 5)))
    cnn = partial(models.cnn, rgb, 10, width=w, hidden=6 * w)
    digits_cnn = partial(models.digits_cnn, digits.shape, 10, width=w, hidden=(32 * w, 8 * w))
    resnet = partial(models.resnet18, rgb, 10, norm="group", corner=3, width=w)
    small_cnn = partial(models.small_cnn, rgb, 10)
    table = [
        ("chapter 2, CNN", cnn, cifar, ten, 10, 10, 32),
        ("chapter 3, digits CNN", digits_cnn, digits, five, 5, 23, 32),
        ("chapter 4, ResNet-18 GN", resnet, cifar, hundred, 20, 2, 25),
        ("chapter 4, small CNN", small_cnn, cifar, hundred, 20, 20, 50),
    ]
    found = [Shape(*line) for line in table]
    return [shape._replace(clients_per_round=2, local_steps=1, batch_size=4) for shape in found] if small else found


def speed(device: str, deadline: float, small: bool) -> Iterator[str]:
    """All of it; a variant for which its shape's share of the time is over is named and left out.

    On a CPU only the engines: TF32, cuDNN and graphs it has not.
    """
    each, table = 0.0 if small else 0.4, shapes(small)
    variants = VARIANTS[:2] if device == "cpu" else VARIANTS
    for number, shape in enumerate(table):
        began = time.monotonic()
        until = began + 0.9 / (len(table) - number) * (deadline - began)
        yield f"{shape.name}, {shape.clients_per_round} x {shape.local_steps} x {shape.batch_size}"
        for variant in variants:
            over = time.monotonic() > until - 1
            yield f"   {variant.name:26}{' out of time' if over else measured(shape, variant, device, each)}"
        yield f"   {'plain loop':26}{plain_loop(shape, device, each)}"
    slim = partial(models.slim_cnn, (3, 32, 32), 10)
    shape = Shape("slim CNN", slim, table[0].data, table[0].parts, 10, 1 if small else 5, 4 if small else 16)
    for lr, seed in (([0.01], [0]), ([0.01, 0.03, 0.1, 0.3, 1.0], [0, 1, 2])):
        over = time.monotonic() > deadline - 2
        found = " out of time" if over else measured(shape, VARIANTS[0], device, each, lr=lr, seed=seed)
        yield f"{len(lr) * len(seed):2} runs of {shape.name}, 10 x {shape.local_steps} x {shape.batch_size}:{found}"
    yield from unit_norms(table[1].model(), device)


def synchronize(device: str) -> None:
    """Wait until the GPU has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """How long it takes."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def measured(
    shape: Shape, variant: Variant, device: str, least: float, lr: Sequence[float] = (0.01,), seed: Sequence[int] = (0,)
) -> str:
    """Medians over the rounds after the first ones, which take ``least`` seconds or more; or what went wrong."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    switch(variant.benchmark)
    options = {"engine": variant.engine, "precision": variant.precision, "device": device, "lr": lr, "seed": seed}
    sizes = {name: getattr(shape, name) for name in ("clients_per_round", "local_steps", "batch_size")}
    times: list[float] = []
    try:
        sim = fl.Simulation(shape.model, shape.data, shape.parts, **sizes, **options)
        sim.clients.trainer.recordings.possible = variant.capture
        while len(times) < FEWEST or sum(times) < least:
            times.append(seconds(sim.step, device))
        seeds = [own["seed"] for own in sim.settings]
        drawing = statistics.median(seconds(partial(sim.schedule.draw, seeds, t), device) for t in range(FEWEST))
    except Exception as error:
        return f" {type(error).__name__}: {str(error)[:100]}"
    finally:
        switch()
    whole = statistics.median(times[WARM:])
    peak = "" if device == "cpu" else f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return (
        f"{1 / whole:8.2f} rounds/s: {1e3 * whole:.1f} ms, drawing {1e3 * drawing:.1f} of them; "
        f"first {times[0]:.2f} s, capture {max(times[1:WARM]):.2f} s{peak}"
    )


def plain_loop(shape: Shape, device: str, least: float) -> str:
    """What a PyTorch user writes first: a copy of the network for every client, one after another."""
    rng, server = np.random.default_rng(0), shape.model().to(device)
    x, y = fl.data.prepare(shape.data.x_train).to(device), shape.data.y_train.to(device)

    def trained(part: Tensor) -> Tensor:
        client = copy.deepcopy(server)
        optimiser = torch.optim.SGD(client.parameters(), lr=0.01)
        order = rng.permutation(part.numpy())[: shape.local_steps * shape.batch_size]
        for batch in torch.from_numpy(order).to(device).split(shape.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(client(x[batch]), y[batch]).backward()
            optimiser.step()
        return nn.utils.parameters_to_vector(client.parameters()).detach()

    def one_round() -> None:
        mean = sum(trained(part) / shape.clients_per_round for part in shape.parts[: shape.clients_per_round])
        nn.utils.vector_to_parameters(mean, server.parameters())

    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        times.append(seconds(one_round, device))
    return f"{1 / statistics.median(times[1:]):8.2f} rounds/s"


def unit_norms(net: nn.Module, device: str, rows: int = 15) -> Iterator[str]:
    """The norms that adaptive gradient clipping needs, of all units at once and tensor by tensor."""
    layout = fl.cohort.Layout(net)
    W, units = torch.randn(rows, layout.P, device=device), layout.units()
    ways = {
        "fl.norms.unit_norms": lambda: fl.norms.unit_norms(W, units),
        "by tensor": lambda: [weight.flatten(2).norm(dim=2) for weight in layout.views(W) if weight.dim() > 2],
    }
    for name, norms in ways.items():
        norms()
        took = statistics.median(seconds(norms, device) for _ in range(3))
        yield f"norms of units, {rows} x {layout.P:,}, {name}: {1e3 * took:.2f} ms"

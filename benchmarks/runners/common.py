"""What every runner shares: the work, the network, and whose turn it is. Needs torch and numpy only."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import metadata
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor, nn


class Work:
    """A federated training that is fixed to the last batch, read from the harness's .npz.

    Attributes:
        settings: name, network, shape, classes, lr, batch_size, rounds, layout, precision, device, ...
        x: float (N, C, H, W) in [0, 1], channels-last in memory where the layout is "channels-last"; or int64 (N, L),
            the characters of a text.
        y: int64 (N,).
        parts: positions of each client's images.
    """

    def __init__(self, path: str):
        stored = np.load(path)
        self.settings = s = json.loads(stored["settings"].item())
        self.images, self.labels, self.start = stored["images"], stored["labels"], stored["start"]
        self.dtype = torch.float64 if s["precision"] == "float64" else torch.float32
        self.y = torch.from_numpy(self.labels).to(s["device"])
        self.parts = np.split(stored["parts"], np.cumsum(stored["part_sizes"])[:-1])
        self._cohorts, self._index, self._size = stored["cohorts"], stored["index"], stored["size"]

    @cached_property
    def x(self) -> Tensor:
        """Made on first use: fedlib keeps bytes."""
        if self.images.ndim == 2:  # windows of a text
            return torch.from_numpy(self.images).long().to(self.settings["device"])
        x = torch.from_numpy(self.images).permute(0, 3, 1, 2)  # stored N,H,W,C
        x = x if self.settings["layout"] == "channels-last" else x.contiguous()
        return (x.to(self.dtype) / 255).to(self.settings["device"])

    @property
    def rounds(self) -> int:
        return self.settings["rounds"]

    def cohort(self, t: int) -> list[int]:
        """The clients of round t, in order."""
        return self._cohorts[t].tolist()

    def batches(self, t: int, client: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What a client trains on in round t: images (B, C, H, W) and labels (B,), step by step."""
        slot = self.cohort(t).index(client)
        last = self.settings["layout"] == "channels-last"
        for index, size in zip(self._index[t, slot], self._size[t, slot], strict=True):
            if size:
                rows = torch.from_numpy(index[:size]).to(self.x.device)
                # an index keeps the order of memory only if its own dimension comes first
                x = self.x.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2) if last else self.x[rows]
                yield x, self.y[rows]

    def network(self) -> nn.Module:
        """The network with the weights that the training starts from."""
        net = network(self.settings).to(self.dtype)
        nn.utils.vector_to_parameters(torch.from_numpy(self.start).to(self.dtype), net.parameters())
        return net.to(self.settings["device"])


def network(settings: dict) -> nn.Module:
    """Convolutions with 2x2 max-pooling, dense layers, a head.

    Layout "as written": ReLU, then pooling. "channels-last": pooling, then ReLU, which is the same function.
    Or one of fedlib's own models, in the environments that have it.
    """
    if "model" in settings:
        from fedlib import models

        return models.build(settings["model"], tuple(settings["shape"]), settings["classes"], **settings["options"])
    size_in, *side = settings["shape"]
    layers: list[nn.Module] = []
    for channels in settings["channels"]:
        kernel, bias = settings["kernel"], settings["bias"]
        layers.append(nn.Conv2d(size_in, channels, kernel, padding=kernel // 2, bias=bias))
        pair = [nn.ReLU(), nn.MaxPool2d(2)]
        layers += pair if settings["layout"] == "as written" else reversed(pair)
        size_in, side = channels, [n // 2 for n in side]
    layers.append(nn.Flatten())
    size_in *= side[0] * side[1]
    for size in settings["hidden"]:
        layers += [nn.Linear(size_in, size, bias=settings["bias"]), nn.ReLU()]
        size_in = size
    return nn.Sequential(*layers, nn.Linear(size_in, settings["classes"], bias=settings["bias"]))


class Turns:
    """Whose turn it is: before every round a runner waits for the harness, after it the runner reports."""

    def __init__(self, descriptor: int, packages: tuple[str, ...], device: str):
        self.connection, self.device = Connection(descriptor), device
        found = {name: _version(name) for name in ("torch", "numpy", *packages)}
        self.connection.send({"python": platform.python_version(), **found})

    def wait(self) -> None:
        """Until it is this runner's turn."""
        self.connection.recv()

    def over(self) -> None:
        """A round has ended."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.connection.send("over")

    def finish(self, net: nn.Module) -> None:
        """Hand over the final weights; returns when the harness has them."""
        self.connection.send(nn.utils.parameters_to_vector(net.parameters()).detach().cpu().double().numpy())
        self.connection.recv()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # fedlib from a checkout that is not installed
        return "not installed"


def main(train: Callable[[Work, Turns, dict], nn.Module], *packages: str) -> None:
    """``runner.py WORK.npz DESCRIPTOR OPTIONS``: train, taking turns; ``train`` returns the final network."""
    parser = argparse.ArgumentParser()
    for name in ("work", "descriptor", "options"):
        parser.add_argument(name)
    given = parser.parse_args()
    options = json.loads(given.options)
    work = Work(given.work)
    torch.set_num_threads(options.pop("threads", torch.get_num_threads()))
    turns = Turns(int(given.descriptor), packages, work.settings["device"])
    turns.finish(train(work, turns, options))

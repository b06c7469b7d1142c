"""What gpu_check.py trains on both devices: one federation of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from common import noise
from torch import Tensor, nn

import fedlib as fl
from fedlib import algorithms as A
from fedlib import models


class Case(NamedTuple):
    """A federation that is trained on both devices; ``options`` are those of ``fl.Simulation``."""

    name: str
    algorithm: A.Algorithm
    model: Callable[[], nn.Module]
    data: fl.data.Data
    parts: Sequence[Tensor]
    options: dict
    rounds: int = 6


def cases(small: bool = False) -> list[Case]:
    """One of every kind: what differs in the shapes, in what travels, in the objective, in the step, in the server.

    A third of the rounds if ``small``.
    """
    n = 1 if small else 3
    data, shape = noise(400, (1, 8, 8)), (1, 8, 8)
    text = fl.data.load("shakespeare_excerpt", length=12, stride=4, clients=4, train=60, test=30)
    equal = list(torch.arange(400).view(8, 50))
    unequal = list(torch.arange(400).split([30, 40, 60, 60, 60, 60, 60, 30]))
    speakers = fl.partition.by_domain(text.domain_train)

    def cnn(norm: str) -> Callable[[], nn.Module]:
        return lambda: models.slim_cnn(shape, 10, norm=norm, width=4, hidden=16)

    def digits_cnn(norm: str) -> Callable[[], nn.Module]:
        return lambda: models.slim_digits_cnn(shape, 10, norm=norm, width=4, hidden=(16,))

    def resnet() -> nn.Module:
        return models.resnet18(shape, 10, norm="group", width=8)

    def vit() -> nn.Module:
        return models.vit_encoder(shape, 8, patch=4, width=8, depth=4, heads=2, hidden=16)

    def transformer() -> nn.Module:
        return models.small_char_transformer(text.shape, text.num_classes, width=8, layers=1, feedforward=16)

    steps = {"local_steps": 3, "batch_size": 16}
    epoch = {"local_epochs": 1, "batch_size": 30}
    decay = {**steps, "weight_decay": [0.1], "clip": [0.5]}
    waves = {**decay, "wave": 3, "clients_per_round": 5, "lr_decay": 0.9}
    moved = {**steps, "augment": "flip+crop", "normalise": True}
    views = {**steps, "augment": "flip", "weight_decay": [0.1]}
    simclr = A.layerwise(A.simclr(), A.phases(4), rounds=n, budget=3)
    table = [
        ("plain, augmented", A.fedavg(), cnn("none"), data, equal, moved),
        ("FedNAR + SCAFFOLD, waves", A.fednar(A.scaffold(weighted=True)), cnn("group"), data, equal, waves),
        ("FedBN", A.fedbn(), digits_cnn("batch"), data, equal, steps),
        ("SiloBN", A.silobn(), digits_cnn("batch"), data, equal, steps),
        ("FixBN", A.fixbn(2 * n - 1), digits_cnn("batch"), data, equal, steps, 9),
        ("FedWon, AGC", A.fedwon(agc=0.1), digits_cnn("wsconv"), data, equal, steps),
        ("standalone", A.standalone(), digits_cnn("batch"), data, equal, steps),
        ("layer-wise SimCLR", simclr, vit, data, equal, views, 12),
        ("text", A.fedavg(), transformer, text, speakers, steps),
        ("unequal epochs", A.fedavg(), cnn("layer"), data, unequal, epoch),
        ("unequal, BN, SCAFFOLD", A.scaffold(), cnn("batch"), data, unequal, epoch),
        ("ResNet-18 GN", A.fednar(A.fedavg()), resnet, data, equal[:4], decay),
    ]
    objectives, servers = (A.fedlc, A.fedrs, A.feddecorr), (A.fedexp, A.fedavgm, A.fedadam, A.fedyogi, A.fedadam_eps)
    table += [(m.__name__, m(), cnn("layer"), data, unequal, decay) for m in (A.fedprox, *objectives, *servers)]
    found = [Case(*line) for line in table]
    return [case._replace(rounds=case.rounds // 3) for case in found] if small else found

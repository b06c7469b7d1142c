"""FedNAR's six backbones against their released code, written out again from a reading of it.

``ljb121002/fednar`` at f44da15 adds half of the squared norm to the loss, clips by torch's ``clip_grad_norm_`` and
steps by torch's SGD; its baseline has the decay in SGD's ``weight_decay``. Nothing of fedlib is used here but the
schedule, which says whose turn it is with which images.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fedlib as fl
from fedlib.schedule import Schedule

A = fl.algorithms
CLIENTS, COHORT, STEPS, BATCH, ROUNDS, SEED = 6, 3, 4, 8, 6, 5
LR, FALL = 0.1, 0.9  # theirs are 0.01 and 0.998: in six rounds nothing would fall
METHODS = {
    "FedAvg": A.fedavg(),
    "FedProx": A.fedprox(mu=0.001),
    "SCAFFOLD": A.scaffold(weighted=True),
    "FedExP": A.fedexp(eps=0.0),
    "FedAvgM": A.fedavgm(),
    "FedAdam": A.fedadam_eps(eps=0.01 * FALL**2, eps_decay=FALL**2),
}


def network():
    torch.manual_seed(0)
    first, second = nn.Linear(64, 12), nn.Linear(12, 12)
    body = [nn.Flatten(), first, nn.GroupNorm(2, 12), nn.ReLU(), second, nn.GroupNorm(2, 12), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(12, 10))


@pytest.fixture(scope="module")
def data():
    return fl.data.some(fl.data.load("digits"), 240)


@pytest.fixture(scope="module")
def parts(data):
    return fl.partition.dirichlet(data.y_train, CLIENTS, 0.5, seed=1)  # of unequal sizes: averages are weighted


class Released:
    """The servers of the released code; every update is a sum over the sampled clients, weighted by their images."""

    def __init__(self, method, weights, total):
        self.method, self.w, self.weights = method, weights, total
        self.m, self.v = torch.zeros_like(weights), torch.zeros_like(weights)
        self.memory = torch.zeros(CLIENTS, len(weights), dtype=weights.dtype)  # a row for each client, in every method
        self.control = torch.zeros_like(weights)

    def step(self, t, deltas, p):
        average, lr = sum(p_k * d for p_k, d in zip(p, deltas.values(), strict=True)), 1.0
        if self.method == "FedExP":
            spread = sum(p_k * d.square().sum() for p_k, d in zip(p, deltas.values(), strict=True))
            lr = max(1.0, float(0.5 * spread / average.square().sum()))
        elif self.method == "FedAvgM":
            self.m = average = average + 0.9 * self.m
        elif self.method == "FedAdam":
            eps = 0.01 * FALL ** (2 * (t + 1))
            average = self.m = 0.1 * average + 0.9 * self.m  # overwritten before it is squared
            self.v = 0.01 * average.square() + 0.99 * self.v
            average, lr = (self.m / 0.1) / (self.v / 0.01 + eps).sqrt(), 0.1
        self.w = self.w + lr * average


def released(method, data, parts, schedule, decay, radius, nar):
    """The server's weights after six rounds, and which of its steps were clipped."""
    net = network().double()
    x, y, sizes = data.x_train.double() / 255, data.y_train, torch.tensor([len(part) for part in parts]).double()
    server = Released(method, parameters_to_vector(net.parameters()).detach(), sizes / sizes.sum())
    lengths = []
    for t in range(ROUNDS):
        eta, deltas = LR * FALL ** (t + 1), {}
        for k in schedule.cohort(SEED, t):
            client = copy.deepcopy(net)
            vector_to_parameters(server.w.clone(), client.parameters())
            sgd = torch.optim.SGD(client.parameters(), lr=eta, weight_decay=0.0 if nar else decay)
            turn = schedule.turn(SEED, t, k)
            for row, size in zip(turn.index, turn.size, strict=True):
                batch, w = row[:size], parameters_to_vector(client.parameters())
                loss = F.cross_entropy(client(x[batch]), y[batch])
                if method == "FedProx":
                    loss = loss + 0.001 / 2 * (w - server.w).square().sum()
                if method == "SCAFFOLD":
                    loss = loss + w @ (server.control - server.memory[k])
                if nar:
                    loss = loss + 0.5 * decay * w.square().sum()
                sgd.zero_grad()
                loss.backward()
                lengths.append(nn.utils.clip_grad_norm_(client.parameters(), radius))
                sgd.step()
            deltas[int(k)] = parameters_to_vector(client.parameters()).detach() - server.w
        if method == "SCAFFOLD":
            for k, delta in deltas.items():
                server.memory[k] += -server.control - delta / (STEPS * eta)
            server.control = server.weights @ server.memory
        held = sizes[list(deltas)]
        server.step(t, deltas, held / held.sum())
    return server.w, torch.stack(lengths) > radius


@pytest.mark.parametrize("nar", [False, True], ids=["base", "NAR"])
@pytest.mark.parametrize("method", METHODS)
def test_six_rounds_are_those_of_the_released_code(data, parts, method, nar):
    decay, radius = 0.5, 1.2
    schedule = Schedule([part.numpy() for part in parts], COHORT, BATCH, local_steps=STEPS)
    theirs, clipped = released(method, data, parts, schedule, decay, radius, nar)
    assert 0.1 < clipped.double().mean() < 0.9 or nar  # with the decay in it nearly every step is long
    assert clipped.any()
    run = fl.run(
        network, data, parts, A.fednar(METHODS[method]) if nar else METHODS[method],
        rounds=ROUNDS, lr=LR * FALL, lr_decay=FALL, weight_decay=decay, clip=radius, seed=SEED, local_steps=STEPS,
        batch_size=BATCH, clients_per_round=COHORT, precision="float64", device="cpu", progress=False,
    )  # fmt: skip
    ours = parameters_to_vector(run.model().parameters())
    assert (ours - theirs).abs().max() < 1e-10
    assert (ours - parameters_to_vector(network().parameters())).abs().max() > 1e-2

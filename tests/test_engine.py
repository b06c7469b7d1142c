"""The engine against a plain per-client loop, in float64, and against itself."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlib import algorithms, simulate
from fedlib.data import Data

N, ROUNDS, LR, SEED = 5, 3, 0.1, 3
SIZES = (24, 9, 17, 30, 11)


def images(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 8, 8, 2), generator=g, dtype=torch.uint8).permute(0, 3, 1, 2)
    return x, torch.randint(0, 4, (count,), generator=g)


@pytest.fixture(scope="module")
def data() -> Data:
    x, y = images(0, sum(SIZES))
    x_test, y_test = images(1, 40)
    return Data("noise", x, y, x_test, y_test, tuple("abcd"), mean=(0.4, 0.5), std=(0.3, 0.2))


@pytest.fixture(scope="module")
def parts() -> list[torch.Tensor]:
    return list(torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(2)).split(SIZES))


class Net(nn.Module):
    """A convolution, a norm, two linear layers."""

    def __init__(self, norm: str):
        super().__init__()
        layer = {"none": nn.Identity(), "batch": nn.BatchNorm2d(6), "layer": nn.GroupNorm(1, 6)}[norm]
        if norm == "batch":
            layer.num_batches_tracked = None
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), layer, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 7), nn.ReLU())
        self.head = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def vector(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def plain_loop(net: nn.Module, data: Data, parts: list, method: str, *, K: int = N, **work) -> nn.Module:
    """Federated training as its papers' algorithm boxes say it, one client after the other."""
    net = copy.deepcopy(net).double()
    x = data.x_train.double() / 255
    c, c_k = torch.zeros_like(vector(net)), [torch.zeros_like(vector(net)) for _ in parts]
    m, v = torch.zeros_like(c), torch.full_like(c, 1e-6)
    for t in range(ROUNDS):
        rng = np.random.default_rng([SEED, t])
        cohort = np.arange(N) if K == N else np.sort(rng.choice(N, K, replace=False))
        w, n = vector(net), sum(len(parts[k]) for k in cohort)
        delta, dc = torch.zeros_like(w), torch.zeros_like(w)
        buffers = {name: torch.zeros_like(b) for name, b in net.named_buffers()}
        for k in cohort:
            client = copy.deepcopy(net).train()
            sgd = torch.optim.SGD(client.parameters(), lr=LR)
            steps = simulate._order(rng, parts[k].numpy(), 8, work.get("local_steps"), work.get("local_epochs"))
            for batch in steps:
                loss = F.cross_entropy(client(x[batch]), data.y_train[batch])
                if method == "fedprox":
                    loss = loss + 0.5 * 0.3 * sum((p - q.detach()).square().sum() for p, q in
                                                  zip(client.parameters(), net.parameters(), strict=True))
                sgd.zero_grad()
                loss.backward()
                if method == "scaffold":
                    offset = 0
                    for p in client.parameters():
                        p.grad += (c - c_k[k])[offset:offset + p.numel()].view_as(p)
                        offset += p.numel()
                sgd.step()
            moved = vector(client) - w
            delta += len(parts[k]) / n * moved
            for name, b in client.named_buffers():
                buffers[name] += len(parts[k]) / n * b
            if method == "scaffold":
                new = c_k[k] - c - moved / (len(steps) * LR)
                dc += (new - c_k[k]) / N
                c_k[k] = new
        c = c + dc
        if method == "fedyogi":
            m = 0.9 * m + 0.1 * delta
            v = v - 0.01 * delta**2 * torch.sign(v - delta**2)
            delta = 0.01 * m / (v.sqrt() + 1e-3)
        nn.utils.vector_to_parameters(w + delta, net.parameters())
        for name, b in net.named_buffers():
            b.copy_(buffers[name])
    return net


def final(run: simulate.Run) -> torch.Tensor:
    net = run.model()
    return torch.cat([t.flatten() for t in (*net.parameters(), *net.buffers())]).detach()


METHODS = {"fedavg": algorithms.fedavg(), "fedprox": algorithms.fedprox(0.3), "scaffold": algorithms.scaffold(),
           "fedyogi": algorithms.fedyogi()}


@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_plain_loop(data, parts, method, norm, engine):
    """Unequal clients, a cohort of 3 of 5, epochs with a partial last batch."""
    torch.manual_seed(0)
    net = Net(norm)
    expected = plain_loop(net, data, parts, method, K=3, local_epochs=2)
    got = simulate.run(net, data, parts, METHODS[method], rounds=ROUNDS, lr=LR, seed=SEED, batch_size=8, local_epochs=2,
                       clients_per_round=3, precision="float64", engine=engine, progress=False, device="cpu")
    reference = torch.cat([t.flatten() for t in (*expected.parameters(), *expected.buffers())]).detach()
    assert (final(got) - reference).abs().max() < 1e-10

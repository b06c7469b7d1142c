"""The finding of chapter 2 by a plain PyTorch loop that knows nothing of the engine.

With the schedule's draws five rounds agree to rounding. With draws of its own, ten seeds give the same order and
intervals that overlap: the finding does not hang on how fedlib trains.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedlib as fl
from fedlib.book import bars
from fedlib.schedule import Schedule

CLIENTS, STEPS, BATCH = 10, 5, 16


class LayerNorm(nn.Module):
    """Mean and variance of each example, as the paper writes it."""

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()


class FeatureNorm(nn.Module):
    def forward(self, x):
        return x * x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


NORMS = {  # after the first, after the second hidden layer
    "none": (nn.Identity, nn.Identity),
    "layer": (LayerNorm, LayerNorm),
    "feature": (nn.Identity, FeatureNorm),
}


def perceptron(norm, seed):
    torch.manual_seed(seed)
    first, second = (make() for make in NORMS[norm])
    layers = [nn.Linear(64, 64, bias=False), nn.ReLU(), first, nn.Linear(64, 32, bias=False), nn.ReLU(), second]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, 10, bias=False))


def federate(net, x, y, rounds, lr, batches):
    """FedAvg: ``batches(t, k)`` are those of client k in round t, and how many images it holds."""
    for t in range(rounds):
        w, average, total = [p.detach().clone() for p in net.parameters()], None, 0
        for k in range(CLIENTS):
            with torch.no_grad():
                for p, value in zip(net.parameters(), w, strict=True):
                    p.copy_(value)
            sgd = torch.optim.SGD(net.parameters(), lr=lr)
            own, held = batches(t, k)
            for batch in own:
                sgd.zero_grad()
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                sgd.step()
            sent = [held * p.detach() for p in net.parameters()]
            average = sent if average is None else [a + s for a, s in zip(average, sent, strict=True)]
            total += held
        with torch.no_grad():
            for p, value in zip(net.parameters(), average, strict=True):
                p.copy_(value / total)
    return net


@pytest.fixture(scope="module")
def data():
    return fl.data.hold_out(fl.data.load("digits"))


def parts_of(data, seed):
    return fl.partition.n_class(data.y_train, CLIENTS, 1, seed=seed)


def network(data, norm):
    # the paper's norms have no weights of their own
    style = {"affine": False} if norm == "layer" else {}
    return lambda: fl.models.mlp(data.shape, 10, hidden=(64, 32), norm=norm, bias=False, **style)


@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("norm", NORMS)
def test_with_the_schedules_draws_five_rounds_agree(data, norm, engine):
    seed, rounds = 7, 5
    parts = parts_of(data, seed)
    schedule = Schedule([p.numpy() for p in parts], CLIENTS, BATCH, local_steps=STEPS)

    def batches(t, k):
        turn = schedule.turn(seed, t, k)
        return [row[:n] for row, n in zip(turn.index, turn.size, strict=True)], len(parts[k])

    x = data.x_train.double() / 255
    net = federate(perceptron(norm, seed).double(), x, data.y_train, rounds, 0.1, batches)
    run = fl.run(
        network(data, norm), data, lambda s: parts_of(data, s), rounds=rounds, lr=0.1, seed=seed, local_steps=STEPS,
        batch_size=BATCH, precision="float64", device="cpu", engine=engine, progress=False,
    )  # fmt: skip
    ours = nn.utils.parameters_to_vector(run.model().parameters())
    theirs = nn.utils.parameters_to_vector(net.parameters())
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-10
    assert (theirs - nn.utils.parameters_to_vector(perceptron(norm, seed).parameters())).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("norm, rounds", [("layer", 50), ("feature", 50)])
def test_with_draws_of_its_own_ten_seeds_find_the_same(data, norm, rounds, capsys):
    seeds, lr = range(10), 0.1
    x, y = data.x_train.float() / 255, data.y_train

    def by_the_loop(kind, seed):
        parts, rng = parts_of(data, seed), torch.Generator().manual_seed(1000 + seed)

        def batches(t, k):
            picks = [torch.randperm(len(parts[k]), generator=rng)[:BATCH] for _ in range(STEPS)]
            return [parts[k][pick] for pick in picks], len(parts[k])

        net = federate(perceptron(kind, 500 + seed), x, y, rounds, lr, batches).eval()
        with torch.no_grad():
            return 100 * (net(data.x_test.float() / 255).argmax(1) == data.y_test).double().mean().item()

    loop = {kind: np.array([by_the_loop(kind, seed) for seed in seeds]) for kind in ("none", norm)}
    engine = {
        kind: np.array([
            100 * run.accuracy
            for run in fl.sweep(
                network(data, kind), data, lambda s: parts_of(data, s), rounds=rounds, lr=[lr], seed=seeds,
                local_steps=STEPS, batch_size=BATCH, device="cpu", progress=False,
            )
        ])
        for kind in loop
    }  # fmt: skip
    gains = {name: found[norm] - found["none"] for name, found in (("loop", loop), ("engine", engine))}
    spans = {name: bars.interval(gain) for name, gain in gains.items()}
    with capsys.disabled():
        for name, gain in gains.items():
            print(f"\n{norm}, {name}: {gain.mean():+.1f} points [{spans[name][0]:+.1f}, {spans[name][1]:+.1f}]")
    assert all(gain.mean() > 0 for gain in gains.values())
    assert max(low for low, _ in spans.values()) <= min(high for _, high in spans.values())

"""Objectives and server steps against their formulas, worked out by hand or in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedlib import algorithms
from fedlib.algorithms import Update


class Linear(nn.Module):
    """The identity as body, a fixed head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Identity(), nn.Linear(3, 3, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0, 2], [0, 1, 0], [3, 0, 1]], dtype=torch.float64)

    def forward(self, x):
        return self.head(self.body(x))


X = torch.tensor([[0.5, 1.0, -1.0], [2.0, 0.0, 0.3], [0.1, 0.2, 0.4], [1.0, -1.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0])


def cross_entropy(logits: np.ndarray) -> float:
    exp = np.exp(logits)
    return float(np.mean(-np.log(exp[np.arange(4), Y.numpy()] / exp.sum(axis=1))))


def test_fedlc_subtracts_its_margin():
    counts = torch.tensor([4.0, 9.0, 1.0], dtype=torch.float64)
    loss = algorithms.fedlc(tau=0.7).objective(Linear(), X, Y, counts)
    logits = (X @ Linear().head.weight.T).detach().numpy() - 0.7 * counts.numpy() ** -0.25
    assert loss.item() == pytest.approx(cross_entropy(logits), rel=1e-12)


def test_fedlc_cannot_learn_from_one_class():
    net = Linear()
    loss = algorithms.fedlc().objective(net, X, torch.ones(4, dtype=torch.long), torch.tensor([0.0, 50, 0]).double())
    loss.backward()
    assert loss.item() == 0 and net.head.weight.grad.abs().max() == 0


def test_fedrs_scales_the_logits_of_absent_classes():
    counts = torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)
    loss = algorithms.fedrs(alpha=0.3).objective(Linear(), X, Y, counts)
    logits = (X @ Linear().head.weight.T).detach().numpy() * np.array([1, 1, 0.3])
    assert loss.item() == pytest.approx(cross_entropy(logits), rel=1e-12)


def test_feddecorr_adds_the_squared_correlations():
    loss = algorithms.feddecorr(weight=0.4).objective(Linear(), X, Y, torch.ones(3).double())
    logits = (X @ Linear().head.weight.T).detach().numpy()
    penalty = (np.corrcoef(X.numpy().T) ** 2).sum() / 9
    assert loss.item() == pytest.approx(cross_entropy(logits) + 0.4 * penalty, rel=1e-6)


def update(deltas: list, p: list, **memory: list) -> Update:
    deltas, p = torch.tensor([deltas], dtype=torch.float64), torch.tensor([p], dtype=torch.float64)
    rows = {name: torch.tensor([row], dtype=torch.float64) for name, row in memory.items()}
    return Update(torch.einsum("sk,skp->sp", p, deltas), deltas, p, rows, {}, clients=2)


W = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
DELTAS, P = [[4.0, 0.0], [0.0, 2.0]], [0.25, 0.75]  # their mean is (1, 1.5)


def test_fedavgm_by_hand():
    state = update(DELTAS, P, m=[10.0, 0.0])
    assert algorithms.fedavgm(lr=0.5, momentum=0.9).server(W, state).tolist() == [[1 + 0.5 * 10, -2 + 0.5 * 1.5]]
    assert state.memory["m"].tolist() == [[10.0, 1.5]]


@pytest.mark.parametrize("method, v", [(algorithms.fedadam, lambda v, d2: 0.9 * v + 0.1 * d2),
                                       (algorithms.fedyogi, lambda v, d2: v - 0.1 * d2 * math.copysign(1, v - d2))])
def test_adaptive_servers_by_hand(method, v):
    state = update(DELTAS, P, m=[0.0, 2.0], v=[4.0, 0.5])
    got = method(lr=0.1, beta1=0.5, beta2=0.9, tau=0.01).server(W, state)
    expected = [1 + 0.1 * 0.5 / (math.sqrt(v(4.0, 1.0)) + 0.01), -2 + 0.1 * 1.75 / (math.sqrt(v(0.5, 2.25)) + 0.01)]
    assert got[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_fedexp_extrapolates_when_clients_disagree_and_never_shrinks():
    spread, mean = 0.25 * 16 + 0.75 * 4, 1 + 1.5**2
    got = algorithms.fedexp(eps=0.1).server(W, update(DELTAS, P, previous=[0.0, 0.0]))
    step = max(1, spread / (2 * (mean + 0.1)))
    assert step > 1
    assert got[0].tolist() == pytest.approx([1 + step, -2 + 1.5 * step])
    agreed = algorithms.fedexp().server(W, update([[1.0, 1.0], [1.0, 1.0]], P, previous=[0.0, 0.0]))
    assert agreed.tolist() == [[2.0, -1.0]]


def test_fedexp_is_read_out_between_its_last_two_iterates():
    method, state = algorithms.fedexp(), update(DELTAS, P, previous=[0.0, 0.0])
    new = method.server(W, state)
    assert torch.equal(method.readout(new, state.memory), (W + new) / 2)


@pytest.mark.parametrize("make", [
    lambda: algorithms.fedprox(mu=-1), lambda: algorithms.fedprox(mu=math.nan), lambda: algorithms.fedlc(tau=0),
    lambda: algorithms.fedrs(alpha=1.5), lambda: algorithms.feddecorr(weight=-0.1),
    lambda: algorithms.fedavgm(momentum=2), lambda: algorithms.fedyogi(lr=math.inf),
    lambda: algorithms.fedadam(beta2=-0.1)])
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_fedbn_without_batch_norm_says_so():
    with pytest.raises(ValueError, match="norm='batch'"):
        algorithms.fedbn().local(Linear())

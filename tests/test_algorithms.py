"""Objectives and server steps against their formulas, worked out by hand or in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedlib import algorithms, norms
from fedlib.algorithms import Reports, Update, fednar
from fedlib.cohort import Local


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
    loss = algorithms.fedlc(tau=0.7).loss(Linear(), X, Y, counts)
    logits = (X @ Linear().head.weight.T).detach().numpy() - 0.7 * counts.numpy() ** -0.25
    assert loss.item() == pytest.approx(cross_entropy(logits), rel=1e-12)


def test_fedlc_cannot_learn_from_one_class():
    net = Linear()
    loss = algorithms.fedlc().loss(net, X, torch.ones(4, dtype=torch.long), torch.tensor([0.0, 50, 0]).double())
    loss.backward()
    assert loss.item() == 0 and net.head.weight.grad.abs().max() == 0


def test_fedrs_scales_the_logits_of_absent_classes():
    counts = torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)
    loss = algorithms.fedrs(alpha=0.3).loss(Linear(), X, Y, counts)
    logits = (X @ Linear().head.weight.T).detach().numpy() * np.array([1, 1, 0.3])
    assert loss.item() == pytest.approx(cross_entropy(logits), rel=1e-12)


def test_feddecorr_adds_the_squared_correlations():
    loss = algorithms.feddecorr(weight=0.4).loss(Linear(), X, Y, torch.ones(3).double())
    logits = (X @ Linear().head.weight.T).detach().numpy()
    penalty = (np.corrcoef(X.numpy().T) ** 2).sum() / 9
    assert loss.item() == pytest.approx(cross_entropy(logits) + 0.4 * penalty, rel=1e-6)


def update(deltas: list, p: list, method: algorithms.Algorithm, **memory: list) -> Update:
    deltas, p = torch.tensor([deltas], dtype=torch.float64), torch.tensor([p], dtype=torch.float64)
    rows = {name: torch.tensor([row], dtype=torch.float64) for name, row in memory.items()}
    sums, came = method.server.collect(Reports(W, deltas, p, p, {})), torch.ones(1, 1, dtype=torch.float64)
    return Update(torch.einsum("sk,skp->sp", p, deltas), sums, rows, 2, 0, method.settings, came)


W = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
DELTAS, P = [[4.0, 0.0], [0.0, 2.0]], [0.25, 0.75]  # their mean is (1, 1.5)


def test_fedavgm_by_hand():
    method = algorithms.fedavgm(lr=0.5, momentum=0.9)
    state = update(DELTAS, P, method, m=[10.0, 0.0])
    assert method.server.move(W, state).tolist() == [[1 + 0.5 * 10, -2 + 0.5 * 1.5]]
    assert state.memory["m"].tolist() == [[10.0, 1.5]]


@pytest.mark.parametrize(
    "method, v",
    [
        (algorithms.fedadam, lambda v, d2: 0.9 * v + 0.1 * d2),
        (algorithms.fedyogi, lambda v, d2: v - 0.1 * d2 * math.copysign(1, v - d2)),
    ],
)
def test_adaptive_servers_by_hand(method, v):
    method = method(lr=0.1, beta1=0.5, beta2=0.9, tau=0.01)
    got = method.server.move(W, update(DELTAS, P, method, m=[0.0, 2.0], v=[4.0, 0.5]))
    expected = [1 + 0.1 * 0.5 / (math.sqrt(v(4.0, 1.0)) + 0.01), -2 + 0.1 * 1.75 / (math.sqrt(v(0.5, 2.25)) + 0.01)]
    assert got[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_fedexp_extrapolates_when_clients_disagree_and_never_shrinks():
    spread, mean = 0.25 * 16 + 0.75 * 4, 1 + 1.5**2
    method = algorithms.fedexp(eps=0.1)
    got = method.server.move(W, update(DELTAS, P, method, previous=[0.0, 0.0]))
    step = max(1, spread / (2 * (mean + 0.1)))
    assert step > 1
    assert got[0].tolist() == pytest.approx([1 + step, -2 + 1.5 * step])
    agreed = method.server.move(W, update([[1.0, 1.0], [1.0, 1.0]], P, method, previous=[0.0, 0.0]))
    assert agreed.tolist() == [[2.0, -1.0]]


def test_fedexp_is_read_out_between_its_last_two_iterates():
    method = algorithms.fedexp()
    state = update(DELTAS, P, method, previous=[0.0, 0.0])
    new = method.server.move(W, state)
    assert torch.equal(method.server.shown(new, state.memory), (W + new) / 2)


def test_fedadam_with_eps_inside_the_root_by_hand():
    method = algorithms.fedadam_eps(lr=0.1, beta1=0.5, beta2=0.9, eps=0.01, eps_decay=0.5)
    state = update(DELTAS, P, method, m=[0.0, 2.0], v=[4.0, 0.5])
    state.round = 3
    got = method.server.move(W, state)
    m, eps = (0.5 * 0 + 0.5 * 1, 0.5 * 2 + 0.5 * 1.5), 0.01 * 0.5**3
    v = 0.9 * 4 + 0.1 * m[0] ** 2, 0.9 * 0.5 + 0.1 * m[1] ** 2  # of the momentum, as in the code that it is taken from
    expected = [1 + 0.1 * m[0] / 0.5 / math.sqrt(v[0] / 0.1 + eps), -2 + 0.1 * m[1] / 0.5 / math.sqrt(v[1] / 0.1 + eps)]
    assert got[0].tolist() == pytest.approx(expected, rel=1e-12)


# --- FedNAR ---


rows_of_four = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), min_size=1, max_size=5)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(g=rows_of_four, seed=st.integers(0, 99), scale=st.floats(0, 1e4), wd=st.floats(0, 10), A=st.floats(1e-3, 100))
def test_a_fednar_step_is_in_the_ball_and_is_decayed_sgd_where_that_is(g, seed, scale, wd, A):
    """For any g and w: ||v|| <= A; v = g + wd w if that is no longer than A, else the same direction at length A."""
    G = torch.tensor(g, dtype=torch.float64)
    W = scale * torch.randn(G.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = fednar(algorithms.fedavg()).direction(G, W, Local.alone(W, clip=A, weight_decay=wd))
    plain = G + wd * W
    assert (v.norm(dim=1) <= A).all()
    for row, free in zip(v, plain, strict=True):
        length = free.norm()
        if length < A - 1e-6:
            assert torch.equal(row, free)
        elif length > A:
            torch.testing.assert_close(row, free * A / length, rtol=2e-6 / min(A, 1), atol=1e-9)


def test_each_client_is_clipped_by_itself():
    """A client with a huge gradient does not shorten the steps of the others."""
    g = torch.Generator().manual_seed(0)
    G, W = torch.randn(3, 4, generator=g).double(), torch.randn(3, 4, generator=g).double()
    here, nar = Local.alone(W, clip=2.0, weight_decay=0.1), fednar(algorithms.fedavg())
    before = nar.direction(G, W, here)
    G[1] *= 1e6
    after = nar.direction(G, W, here)
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and after[1].norm() == pytest.approx(2.0)
    alone = nar.direction(G[2:], W[2:], here.take(slice(2, 3)))
    assert torch.equal(alone, after[2:])


def test_fednar_keeps_the_bases_corrections_inside_and_its_server():
    base = algorithms.scaffold()
    inside = fednar(base, max_norm=3, annealing=0.9)
    assert inside.step == (algorithms.decay, algorithms.clip) and base.step == (algorithms.clip, algorithms.decay)
    assert (inside.correct, inside.server, inside.keeps) == (base.correct, base.server, base.keeps)
    assert inside.name == "SCAFFOLD + NAR" and inside.settings == {"clip": 3.0, "annealing": 0.9}


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: fednar(algorithms.fedavg(), max_norm=0),
            ValueError,
            "max_norm must be a positive finite number, got 0",
        ),
        (lambda: fednar(algorithms.fedavg(), max_norm=-1.0), ValueError, "max_norm must be a positive finite number"),
        (lambda: fednar(algorithms.fedavg(), annealing=0), ValueError, r"annealing must lie in \(0, 1\], got 0"),
        (lambda: fednar(algorithms.fedavg(), annealing=1.01), ValueError, r"annealing must lie in \(0, 1\], got 1.01"),
        (lambda: fednar(algorithms.fedavg(), annealing=math.nan), ValueError, "annealing must lie in"),
        (
            lambda: fednar(fednar(algorithms.fedprox())),
            ValueError,
            "already, got 'FedProx . NAR': wrapping FedNAR twice",
        ),
        (lambda: fednar(algorithms.fedavg), TypeError, r"base must be an Algorithm, such as fedavg\(\)"),
        (lambda: algorithms.fedadam_eps(eps=0), ValueError, "eps must be a positive"),
        (lambda: algorithms.fedadam_eps(eps_decay=2), ValueError, "eps_decay must lie in"),
        (lambda: algorithms.fedadam_eps(beta2=1), ValueError, r"beta2 must lie in \[0, 1\), got 1"),
    ],
)
def test_fednar_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: algorithms.fedprox(mu=-1),
        lambda: algorithms.fedprox(mu=math.nan),
        lambda: algorithms.feddyn(penalty=0),
        lambda: algorithms.fedlc(tau=0),
        lambda: algorithms.fedrs(alpha=1.5),
        lambda: algorithms.feddecorr(weight=-0.1),
        lambda: algorithms.fedavgm(momentum=2),
        lambda: algorithms.fedyogi(lr=math.inf),
        lambda: algorithms.fedadam(beta2=-0.1),
        lambda: algorithms.fixbn(after=0),
        lambda: algorithms.fixbn(after=2.5),
        lambda: algorithms.fedwon(agc=0),
        lambda: algorithms.fedwon(agc=math.nan),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


@pytest.mark.parametrize("method", ["fedbn", "silobn"])
def test_local_batch_norm_without_batch_norm_says_so(method):
    with pytest.raises(ValueError, match=f"{method}.*norm='batch'"):
        getattr(algorithms, method)().travels(Linear(), 0)


def test_fixbn_without_batch_norm_says_so():
    with pytest.raises(ValueError, match="fixbn.*norm='batch'"):
        algorithms.fixbn(after=1).travels(Linear(), 0)


@pytest.mark.parametrize(
    "method, stays",
    [
        ("fedavg", set()),
        ("fedwon", set()),
        ("fedbn", {"1.weight", "1.bias", "1.running_mean", "1.running_var"}),
        ("silobn", {"1.running_mean", "1.running_var"}),
        ("standalone", {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}),
    ],
)
def test_what_stays_on_a_client(method, stays):
    net = nn.Sequential(nn.Linear(3, 4), norms.BatchNorm(4, spatial=False))
    travels = getattr(algorithms, method)().travels
    assert (travels(net, 0).at_home if travels else set()) == stays

"""Dense layers that take a step of plain SGD inside their backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedlib as fl
from fedlib import fused
from fedlib.simulate import Simulation


def loss(net, x, y):
    return F.cross_entropy(net(x), y)


def examples():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()


class Tied(nn.Module):
    """The same weights twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.two(self.one(self.one(x).relu()))


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()))


class Looks(nn.Module):
    """Outputs that depend on a weight beside the layer's product with it."""

    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.one(x)) * self.one.weight.norm()


class Bilinear(nn.Module):
    """A layer whose weight is used without it, and a layer that nobody calls."""

    def __init__(self):
        super().__init__()
        self.one, self.head, self.idle = nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(x @ self.one.weight)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_inside_the_backward_pass_is_that_of_sgd(decay):
    x, y = examples()
    by_itself, other = perceptron(), perceptron()
    rate = fused.Rate(0.3, decay)
    own = fused.arm(by_itself, fused.fitting(by_itself, loss, x, y), rate)
    assert len(own) == 3
    sgd = torch.optim.SGD(other.parameters(), lr=0.3, weight_decay=decay)
    for _ in range(4):
        parameters = list(by_itself.parameters())
        gradients = torch.autograd.grad(loss(by_itself, x, y), parameters, allow_unused=True)
        for p, g in zip(parameters, gradients, strict=True):
            assert (g is None) == (p in own)
            if g is not None:
                with torch.no_grad():
                    p.mul_(1 - 0.3 * decay).sub_(0.3 * g)
        sgd.zero_grad()
        loss(other, x, y).backward()
        sgd.step()
    for p, q in zip(by_itself.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_without_a_rate_and_where_nothing_learns_a_layer_is_as_ever():
    x, y = examples()
    net = perceptron()
    rate = fused.Rate()
    fused.arm(net, ["0", "2", "4"], rate)
    before = [p.detach().clone() for p in net.parameters()]
    loss(net, x, y).backward()
    assert all(p.grad is not None for p in net.parameters())
    rate.lr = 0.1
    net.zero_grad()
    net[0].weight.requires_grad_(False)
    loss(net, x, y).backward()
    assert torch.equal(net[0].weight, before[0]) and not torch.equal(net[2].weight, before[2])


@pytest.mark.parametrize("make", [Tied, Shared, Looks, Bilinear])
def test_a_weight_that_is_used_elsewhere_too_is_left_alone(make):
    torch.manual_seed(0)
    x, y = examples()
    assert fused.fitting(make(), loss, x, y) == []


def test_three_dimensions_and_a_loss_that_looks_at_the_weights():
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 5, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
    y = torch.tensor([0, 1])
    assert fused.fitting(net, lambda n, x, y: F.cross_entropy(n(x).mean(1), y), tokens, y) == ["0", "2"]
    looks = lambda n, x, y: F.cross_entropy(n(x).mean(1), y) + n[0].weight.square().sum()  # noqa: E731
    assert fused.fitting(net, looks, tokens, y) == []


@pytest.fixture(scope="module")
def data():
    return fl.data.load("digits")


NETWORKS = {
    "perceptron": (lambda: fl.models.mlp((1, 8, 8), 10, hidden=(16, 12)), 3),
    "convolutions": (lambda: fl.models.slim_cnn((1, 8, 8), 10, width=4, hidden=12), 2),
    "tied": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Tied3()), 0),
}


class Tied3(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 10)

    def forward(self, x):
        return self.two(self.one(self.one(x).relu()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": [0.0, 0.01]}, {"weight_decay": [0.05], "lr_decay": 0.5}])
def test_engines_agree_where_one_of_them_never_makes_the_gradient(data, name, options):
    make, layers = NETWORKS[name]
    parts = fl.partition.dirichlet(data.y_train, 5, 0.3)
    found = []
    for engine in ("clients", "stacked"):
        sim = Simulation(
            make, data, parts, lr=[0.05, 0.2], local_steps=3, batch_size=8, precision="float64", device="cpu",
            engine=engine, **options,
        )  # fmt: skip
        assert len(sim.clients.trainer.losses[0].fused) == (layers if engine == "clients" else 0)
        for _ in range(3):
            sim.step()
        found.append(sim.server.w)
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "method, layers",
    [
        (fl.algorithms.fedavg(), 3),
        (fl.algorithms.fedyogi(), 3),
        (fl.algorithms.fedlc(), 3),
        (fl.algorithms.fedprox(), 0),
        (fl.algorithms.scaffold(), 0),
        (fl.algorithms.fednar(fl.algorithms.fedavg()), 0),
    ],
)
def test_only_plain_sgd_steps_inside_the_product(data, method, layers):
    sim = Simulation(
        NETWORKS["perceptron"][0], data, fl.partition.iid(data.y_train, 4), method, lr=[0.1], weight_decay=[0.01],
        local_steps=1, device="cpu", engine="clients",
    )  # fmt: skip
    assert len(sim.clients.trainer.losses[0].fused) == layers


class Skips(nn.Module):
    """A layer that is left out of odd rounds, without being frozen."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head, self.on = nn.Linear(64, 5), nn.Linear(5, 5), nn.Linear(5, 10), True

    def stage(self):
        return self.on

    def forward(self, x):
        h = self.a(x.flatten(1)).relu()
        return self.head(self.b(h).relu() if self.on else h)


def test_a_layer_that_a_round_leaves_out_decays_as_any_other(data):
    def travels(net, t):
        net.on = t % 2 == 0
        return fl.cohort.Travels()

    method, found = fl.algorithms.Algorithm("skips", travels=travels), []
    for engine in ("clients", "stacked"):
        sim = Simulation(
            Skips, data, fl.partition.iid(data.y_train, 3), method, lr=[0.1], weight_decay=[0.5], local_steps=2,
            batch_size=8, precision="float64", device="cpu", engine=engine,
        )  # fmt: skip
        assert len(sim.clients.trainer.losses[0].fused) == (3 if engine == "clients" else 0)
        for _ in range(4):
            sim.step()
        found.append(sim.server.w)
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)

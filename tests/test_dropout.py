"""Networks that draw random numbers: masks are functions of seed, round, client and step, whoever computes them."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedlib as fl
from fedlib import dropout as D

KEY = torch.tensor(3_141_592_653_589)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return fl.data.from_arrays(
        "noise", rng.integers(0, 256, (90, 6, 6), dtype=np.uint8), rng.integers(0, 4, 90),
        rng.integers(0, 256, (40, 6, 6), dtype=np.uint8), np.arange(40) % 4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(data):
    return fl.partition.dirichlet(data.y_train, 5, beta=1.0, seed=1)


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 4), nn.Dropout(0.1))


def convolutional():
    dropped = nn.Dropout2d(0.3), nn.FeatureAlphaDropout(0.2), nn.Flatten(), nn.AlphaDropout(0.2)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.SELU(), *dropped, nn.Linear(96, 4))


class Noisy(nn.Module):
    """Draws from all three generators, and not by a dropout layer."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(36, 4)

    def forward(self, x):
        x = F.dropout(x.flatten(1), 0.3, self.training)
        return self.f(x + 0.01 * random.random() * np.random.rand()) if self.training else self.f(x)


def trained(data, parts, make=perceptron, rounds=4, **options):
    given = {"lr": [0.1], "local_steps": 3, "batch_size": 8, "evaluate_every": 2, "precision": "float64", "workers": 1}
    return fl.sweep(make, data, parts, rounds=rounds, progress=False, **given | options)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model().parameters()])


# --- the masks ---


def test_numbers_are_uniform_and_unrelated():
    u = D.uniform(KEY, (400, 500))
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.003
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 45  # chi-squared, 19 degrees of freedom: 0.1 %
    keys = [*(D.mixed(KEY, n) for n in range(5)), D.mixed(KEY + 1, 0)]
    others = torch.stack([D.uniform(key, (200_000,)) for key in keys])
    related = torch.corrcoef(torch.cat([others, u.view(1, -1), u.view(1, -1).roll(1), u.T.reshape(1, -1)]))
    assert (related - torch.eye(len(related))).abs().max() < 0.012


def test_keys_do_not_meet():
    keys = {int(D.mixed(torch.tensor(k), n)) for k in range(60) for n in range(60)}
    assert len(keys) == 3600 and min(keys) >= 0


@pytest.mark.parametrize("kind", D.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_layers_drop_what_torchs_drop(kind, p):
    """The same shape, the same values where a number stays and where not, and as many of each."""
    x = torch.randn(40, 50, 3, 3, 3) if kind is nn.Dropout3d else torch.randn(40, 50, 9)
    x = x if kind in (nn.Dropout1d, nn.Dropout3d) else torch.randn(40, 50, 3, 3)
    theirs, layer = kind(p)(x), nn.Sequential(kind(p))
    D.turn(D.keyed(layer), KEY, 0)
    ours = layer(x)
    torch.testing.assert_close(layer.eval()(x), x)
    stays = 1.0 if p == 0 else 1 - p
    whole = kind not in (nn.Dropout, nn.AlphaDropout)
    slack = 5 * (p * (1 - p) / (2000 if whole else x.numel())) ** 0.5
    for result in (theirs, ours):
        kept = _kept(result, x, kind, p)
        assert abs(kept.double().mean() - stays) <= slack
        if whole:  # a channel stays or goes as a whole
            assert (kept.flatten(2).all(2) | ~kept.flatten(2).any(2)).all()
    both = _kept(theirs, x, kind, p) & _kept(ours, x, kind, p)
    torch.testing.assert_close(ours[both], theirs[both])
    gone = ~_kept(theirs, x, kind, p), ~_kept(ours, x, kind, p)
    if p > 0:
        torch.testing.assert_close(ours[gone[1]].unique(), theirs[gone[0]].unique())


def _kept(result, x, kind, p):
    if p in (0, 1):
        return torch.full_like(x, p == 0, dtype=torch.bool)
    if "Alpha" not in kind.__name__:
        return result != 0
    gone = result.flatten().mode().values  # the one value that a dropped number has
    return (result - gone).abs() > 1e-6


def test_without_a_batch_channels_are_the_first_dimension():
    layer = nn.Sequential(nn.Dropout1d(0.5))
    D.turn(D.keyed(layer), KEY, 0)
    rows = layer(torch.ones(64, 7))
    assert ((rows == 0).all(1) | (rows == 2).all(1)).all() and (rows == 0).any()


def test_a_layer_in_two_places_draws_two_masks():
    layer = nn.Sequential(nn.Dropout(0.5))
    layers = D.keyed(layer)
    x = torch.ones(1000)
    D.turn(layers, KEY, 0)
    first, second = layer(x), layer(x)
    D.turn(layers, KEY, 0)
    assert not torch.equal(first, second) and torch.equal(layer(x), first)
    D.turn(layers, KEY, 1)
    assert not torch.equal(layer(x), first)


def test_a_class_of_somebodys_own_is_left_alone():
    class Mine(nn.Dropout):
        def forward(self, x):
            return x + 1

    net = nn.Sequential(Mine(), nn.Dropout())
    assert len(D.keyed(net)) == 1 and type(net[0]) is Mine


def test_a_layer_without_a_key_says_so():
    net = nn.Sequential(nn.Dropout())
    D.keyed(net)
    with pytest.raises(RuntimeError, match="before its key was given"):
        net(torch.ones(3))


# --- in a federation ---


@pytest.mark.parametrize("make", [perceptron, convolutional])
def test_both_engines_any_chunk_and_any_wave_drop_the_same(data, parts, make):
    options = [
        {"engine": "clients", "workers": 2},
        {"engine": "stacked"},
        {"engine": "stacked", "chunk": 2},
        {"wave": 2},
    ]
    whole, *others = [weights(trained(data, parts, make, **more)[0]) for more in ({}, *options)]
    for other in others:
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-12)
    assert (weights(trained(data, parts, make, seed=[1])[0]) - whole).abs().max() > 1e-3


def test_the_masks_are_those_of_seed_round_client_and_step(data, parts):
    """One client after another, by hand."""
    run = trained(data, parts, rounds=2, clients_per_round=3, seed=[7])[0]
    net = nn.Sequential(*perceptron().double())
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net.load_state_dict(perceptron().double().state_dict())
    layers = D.keyed(net)
    w = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    for t in range(2):
        clients, total = np.sort(np.random.default_rng([7, t]).choice(5, 3, replace=False)), 0
        everything = sum(len(parts[k]) for k in clients)
        for k in clients:
            torch.nn.utils.vector_to_parameters(w.clone(), net.parameters())
            key = torch.tensor(np.random.default_rng([7, t, 1 + k, 3]).integers(1 << 62))
            rng = np.random.default_rng([7, t, 1 + k])
            batches = fl.schedule.local_batches(rng, parts[k].numpy(), 8, local_steps=3)
            for step, index in enumerate(batches):
                D.turn(layers, key, step)
                loss = F.cross_entropy(
                    net(fl.data.prepare(data.x_train[index], dtype=torch.float64)), data.y_train[index]
                )
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                with torch.no_grad():
                    for parameter, g in zip(net.parameters(), gradients, strict=True):
                        parameter -= 0.1 * g
            total = total + len(parts[k]) / everything * torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        w = total
    torch.testing.assert_close(weights(run), w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [perceptron, convolutional, Noisy])
def test_a_seed_repeats_a_checkpoint_continues_and_the_caller_is_left_alone(data, parts, make, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = weights(trained(data, parts, make)[0])
        assert torch.equal(weights(trained(data, parts, make)[0]), whole)
        trained(data, parts, make, rounds=2, checkpoint=tmp_path / "run.pt")
        assert torch.equal(weights(trained(data, parts, make, checkpoint=tmp_path / "run.pt")[0]), whole)

        def numbers():
            return torch.rand(2).tolist() + np.random.rand(2).tolist() + [random.random(), random.random()]

        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(5)
        expected = numbers()
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(5)
        trained(data, parts, make, rounds=1)
        assert numbers() == expected


@pytest.mark.parametrize("engine", ["auto", "stacked"])
def test_a_network_that_draws_otherwise_is_trained_alone_and_it_is_said(data, parts, engine):
    with pytest.warns(UserWarning, match="one after another, each with a generator of its own") as told:
        whole = trained(data, parts, Noisy, engine=engine, workers=2)[0]
    assert len(told) == 1 and whole.config["engine"] == "clients"
    with pytest.warns(UserWarning):  # neither another run of the sweep nor a wave changes what a client draws
        other = trained(data, parts, Noisy, lr=[0.3, 0.1], wave=2)[1]
    torch.testing.assert_close(weights(other), weights(whole), rtol=0, atol=1e-12)


def test_numbers_drawn_in_evaluation_repeat(data, parts):
    class Bayesian(Noisy):
        def forward(self, x):
            return self.f(F.dropout(x.flatten(1), 0.5))

    with pytest.warns(UserWarning, match="generator of its own"):
        runs = [trained(data, parts, Bayesian, rounds=3, evaluate_every=1)[0] for _ in range(2)]
    assert runs[0].history.equals(runs[1].history)


def test_a_model_has_torchs_own_layers(data, parts):
    net = trained(data, parts, rounds=1)[0].model()
    assert type(net[3]) is nn.Dropout and net.train()(torch.rand(8, 1, 6, 6).double()).shape == (8, 4)

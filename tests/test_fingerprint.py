"""A checkpoint goes on only with what it was made of: what decides a result is told apart, and nothing else."""

import dataclasses
import functools
import importlib.util
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedlib as fl
from fedlib import algorithms as A
from fedlib import fingerprint

RADIUS = 2.0


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (n, 6, 6), dtype=np.uint8) if x else np.arange(n) % 3 for n in (60, 30) for x in (1, 0)
    ]
    return fl.data.from_arrays("noise", *arrays)


@pytest.fixture(scope="module")
def parts():
    return list(torch.arange(60).split(15))


class Net(nn.Module):
    """A network of somebody's own, whose parts can be another thing under the same names and shapes."""

    def __init__(self, activation=torch.relu, scale=1.0, skip=False, p=0.0):
        super().__init__()
        self.f, self.g, self.h = nn.Linear(36, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.g.weight)  # a branch that gives nothing at first, as many residual networks have
        self.activation, self.scale, self.skip, self.drop = activation, scale, skip, nn.Dropout(p)

    def forward(self, x):
        z = self.activation(self.f(x.flatten(1)))
        branch = torch.tanh(self.g(self.drop(z)))
        return self.scale * self.h(z + branch if not self.skip else z)


class Normed(Net):
    def __init__(self, **options):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, **options)
        self.activation = self.norm


class Twice(Net):
    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else torch.tensor([1.0, 2.0, 3.0]))


class Four(Net):
    def __init__(self):
        super().__init__()
        self.h = nn.Linear(8, 4)


def smooth(net, x, y, told):
    return F.cross_entropy(net(x), y, label_smoothing=0.5)


def short(G, W, local):
    return G * (RADIUS / G.norm(dim=1, keepdim=True)).clamp(max=1)


def shorter(G, W, local):
    return G * (RADIUS / 2 / G.norm(dim=1, keepdim=True)).clamp(max=1)


def with_steps(*steps):
    return dataclasses.replace(A.fedavg(), correct=steps)


def scaled(factor):
    def correct(G, W, local):
        return factor * G

    return with_steps(correct)


def run(data, parts, make=Net, algorithm=None, rounds=3, **options):
    given = {"lr": [0.1], "local_steps": 2, "batch_size": 5, "progress": False, "device": "cpu", "evaluate_every": 1}
    return fl.sweep(make, data, parts, algorithm, rounds=rounds, **given | options)[0]


def with_images(data, name, change):
    tensor = getattr(data, name).clone()
    change(tensor)
    return dataclasses.replace(data, **{name: tensor})


def _one_pixel(images):
    images[7, 0, 3, 3] ^= 1


def _swap_labels(labels):
    labels[[0, 1]] = labels[[1, 0]]


CHANGES = {  # what decides a result -> (what differs, what the message says of it)
    "an activation": ({"make": lambda: Net(torch.sigmoid)}, "outputs of the network"),
    "a scale": ({"make": lambda: Net(scale=1.1)}, "outputs of the network"),
    "a branch that gives nothing at first": ({"make": lambda: Net(skip=True)}, "of the network"),
    "an eps": ({"make": lambda: Normed(eps=1e-6), "first": Normed}, "numbers of the network"),
    "a momentum": ({"make": lambda: Normed(momentum=0.2), "first": Normed}, "of the network"),
    "what is done in evaluation alone": ({"make": lambda: Twice()}, "evaluation of the network"),
    "a dropout layer": ({"make": lambda: Net(p=0.5)}, "of the network"),
    "the reading order of pixels": ({"make": lambda: _flipped()}, "of the network"),
    "initial weights": ({"make": lambda: _begun_elsewhere()}, "start from other weights"),
    "a training image": ({"data": lambda d: with_images(d, "x_train", _one_pixel)}, "data"),
    "a test image": ({"data": lambda d: with_images(d, "x_test", _one_pixel)}, "data"),
    "training labels": ({"data": lambda d: with_images(d, "y_train", _swap_labels)}, "data"),
    "test labels": ({"data": lambda d: with_images(d, "y_test", _swap_labels)}, "data"),
    "the mean": ({"data": lambda d: dataclasses.replace(d, mean=(0.1,))}, "data"),
    "the standard deviation": ({"data": lambda d: dataclasses.replace(d, std=(0.1,))}, "data"),
    "the number of classes": (
        {"data": lambda d: dataclasses.replace(d, classes=(*d.classes, "3")), "make": Four},
        "data",
    ),
    "an image of a client": ({"parts": lambda p: [*p[:3], p[3][:-1]]}, "parts"),
    "the order of clients": ({"parts": lambda p: p[::-1]}, "parts"),
    "test parts": ({"test_parts": list(torch.arange(28).split(7))}, "test_parts"),
    "an objective": ({"algorithm": dataclasses.replace(A.fedavg(), objective=A.Objective(smooth))}, "functions"),
    "a transformation": ({"algorithm": with_steps(short)}, "functions"),
    "a number that a function closes over": ({"algorithm": scaled(0.5)}, "functions"),
    "the order of a step": ({"algorithm": dataclasses.replace(A.fedavg(), step=(A.decay, A.clip))}, "functions"),
    "a server": (
        {"algorithm": dataclasses.replace(A.fedavg(), server=A.ServerOpt(lambda w, update: w + 2 * update.delta))},
        "functions",
    ),
    "what is shown": (
        {"algorithm": dataclasses.replace(A.fedavg(), server=A.ServerOpt(shown=lambda w, memory: w / 2))},
        "functions",
    ),
    "rate": ({"lr": [0.2]}, "runs"),
    "seed": ({"seed": [1]}, "runs"),
    "decay": ({"weight_decay": [0.1]}, "runs"),
    "clip": ({"clip": [1.0]}, "runs"),
    "lr_decay": ({"lr_decay": 0.5}, "lr_decay"),
    "batch": ({"batch_size": 4}, "batch_size"),
    "steps": ({"local_steps": 3}, "local_steps"),
    "epochs": ({"local_steps": None, "local_epochs": 1}, "local_epochs"),
    "cohort": ({"clients_per_round": 2}, "clients_per_round"),
    "augmentation": ({"augment": "crop"}, "augment"),
    "normalisation": ({"normalise": True}, "normalise"),
    "precision": ({"precision": "float64"}, "precision"),
}


def _flipped():
    net = Net()
    net.forward = functools.partial(lambda net, x: Net.forward(net, x.flip(-1)), net)
    return net


def _begun_elsewhere():
    net = Net()
    with torch.no_grad():
        net.h.bias[0] += 0.5
    return net


@pytest.mark.parametrize("change, named", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_a_result_is_told_apart(data, parts, tmp_path, change, named):
    file = tmp_path / "run.pt"
    change = dict(change)
    run(data, parts, change.pop("first", Net), rounds=2, checkpoint=file)
    data, parts = change.pop("data", lambda d: d)(data), change.pop("parts", lambda p: p)(parts)
    with pytest.raises(ValueError, match=f"belongs to another configuration .*{named}.* give this run another file"):
        run(data, parts, checkpoint=file, **change)


def test_a_global_that_a_function_uses_is_told_apart(data, parts, tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    run(data, parts, rounds=2, algorithm=with_steps(short), checkpoint=file)
    with pytest.raises(ValueError, match="functions"):
        run(data, parts, algorithm=with_steps(shorter), checkpoint=file)
    monkeypatch.setattr(sys.modules[__name__], "RADIUS", 3.0)
    with pytest.raises(ValueError, match="functions"):
        run(data, parts, algorithm=with_steps(short), checkpoint=file)


SAME = {  # what decides nothing
    "wave": {"wave": 2},
    "workers": {"workers": 1},
    "more rounds": {"rounds": 5},
    "positions as lists": {"parts": lambda p: [part.tolist() for part in p]},
    "images laid out otherwise": {
        "data": lambda d: dataclasses.replace(d, x_train=d.x_train.contiguous(memory_format=torch.contiguous_format))
    },
    "the same module, copied": {"data": lambda d: dataclasses.replace(d, x_train=d.x_train.clone())},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_whatever_decides_nothing_goes_on(data, parts, tmp_path, change):
    file = tmp_path / "run.pt"
    run(data, parts, rounds=2, checkpoint=file)
    change = {"rounds": 3} | change
    data, parts = change.pop("data", lambda d: d)(data), change.pop("parts", lambda p: p)(parts)
    again, whole = run(data, parts, checkpoint=file, **change), run(data, parts, **change)
    assert again.history.equals(whole.history)


@pytest.mark.parametrize("change", [{"engine": "stacked"}, {"engine": "stacked", "chunk": 3}])
def test_on_another_machine_it_goes_on_and_says_so(data, parts, tmp_path, change):
    file = tmp_path / "run.pt"
    run(data, parts, rounds=2, checkpoint=file, engine="clients")
    with pytest.warns(UserWarning, match="was made with engine clients.*: it goes on here, .* to rounding"):
        again = run(data, parts, checkpoint=file, **change)
    whole = run(data, parts, engine="clients")
    np.testing.assert_allclose(again.history["loss"], whole.history["loss"], rtol=1e-5)


# --- functions ---

BEFORE = """
SCALE = 3
def helper(x, by=2):
    return x * by
class Step:
    def __init__(self, size): self.size = size
    def __call__(self, G, W, local): return helper(G) * SCALE * self.size
def outer(number):
    def inner(G, W, local):
        return G - number
    return inner, lambda G, W, local: helper(G)
THINGS = {"function": helper, "closure": outer(4), "object": Step(5), "method": Step(6).__call__}
"""
COMMENTED = '''
# a comment
SCALE = 3
def helper(x,
           by=2):
    """A docstring."""
    return x * by  # and another


class Step:
    """What it is."""
    def __init__(self, size):
        self.size = size

    def __call__(self, G, W, local):
        return (helper(G) * SCALE * self.size)

def outer(number):
    def inner(G, W, local):
        return G - number

    return inner, lambda G, W, local: helper(G)
THINGS = {"function": helper, "closure": outer(4), "object": Step(5), "method": Step(6).__call__}
'''
OTHERS = {
    "function": [("x * by", "x + by"), ("by=2", "by=3")],
    "closure": [("G - number", "number - G"), ("outer(4)", "outer(5)"), ("helper(G)\n", "-helper(G)\n")],
    "object": [("SCALE = 3", "SCALE = 4"), ("Step(5)", "Step(7)"), ("by=2", "by=3"), ("* self.size", "/ self.size")],
    "method": [("SCALE = 3", "SCALE = 4"), ("Step(6)", "Step(7)"), ("* self.size", "/ self.size")],
}


def things(source, tmp_path):
    """THINGS of a module with this source."""
    path = tmp_path / f"module_{abs(hash(source))}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.THINGS


@pytest.mark.parametrize("name", OTHERS)
def test_functions_are_what_they_do(name, tmp_path):
    same = fingerprint.of_functions(things(BEFORE, tmp_path)[name])
    assert fingerprint.of_functions(things(COMMENTED, tmp_path)[name]) == same
    for old, new in OTHERS[name]:
        assert old in BEFORE
        assert fingerprint.of_functions(things(BEFORE.replace(old, new), tmp_path)[name]) != same, (old, new)


def test_a_global_with_the_name_of_an_attribute_is_not_used():
    """A notebook has more names than the same cells alone, and a worker fewer than both."""
    written = (
        "def f(x):\n    class Inner:\n        rate = scale\n    return x.measure * Inner.rate + (lambda: x.deep)()"
    )
    alone, among, other = ({"scale": 2.0}, {"scale": 2.0, "measure": print, "deep": 3, "rate": 1}, {"scale": 3.0})
    for names in (alone, among, other):
        exec(written, names)
    assert fingerprint.of_functions(alone["f"]) == fingerprint.of_functions(among["f"])
    assert fingerprint.of_functions(alone["f"]) != fingerprint.of_functions(other["f"])


def test_functions_without_a_source_are_their_bytecode():
    def made(text):
        space = {}
        exec(text, space)  # as in an interactive session that keeps no source
        return fingerprint.of_functions(space["f"])

    assert made("def f(x): return x + 1") == made("def f(x): return x + 1") != made("def f(x): return x + 2")


def test_lambdas_on_one_line_are_told_apart():
    first, second = (lambda x: x + 1), (lambda x: x + 2)
    assert fingerprint.of_functions(first) != fingerprint.of_functions(second)


def test_every_method_is_its_own():
    made = [
        A.fedavg,
        A.fedprox,
        A.scaffold,
        A.feddyn,
        A.fedavgm,
        A.fedadam,
        A.fedyogi,
        A.fedexp,
        A.fedlc,
        A.fedrs,
        A.fedbn,
    ]
    methods = [*(make() for make in made), A.scaffold(weighted=True), A.fednar(A.fedavg()), A.fednar(A.scaffold())]
    bare = [dataclasses.replace(method, name="", settings={}) for method in methods]
    assert len({fingerprint.of_functions(method) for method in bare}) == len(methods)


def test_data_are_hashed_once_and_again_after_a_change(data):
    own = with_images(data, "x_train", lambda x: None)
    first = fingerprint.of_data(own)
    assert first == fingerprint.of_data(data)
    own.x_train[0] ^= 1
    assert fingerprint.of_data(own) != first


def test_answers_differ_by_more_than_rounding():
    a = torch.tensor([1.0, -2.0, float("nan")])
    assert not fingerprint.differ(a, a * (1 + 1e-4)) and fingerprint.differ(a, a * 1.01)
    assert fingerprint.differ(a, a[:2]) and not fingerprint.differ(torch.zeros(2), torch.zeros(2))


def test_things_that_were_met_before_are_told_apart():
    one, two = [1], [2]
    for things in ((one, two), (Path("4"), Path("64")), (Fraction(1, 2), Fraction(1, 3)), (np.add, np.multiply)):
        hashes = {fingerprint.of_functions({"known": list(things), "taken": thing}) for thing in things}
        assert len(hashes) == 2, things


def test_by_name_fedlibs_functions_outlive_a_change_of_their_code(monkeypatch):
    mlp = fl.models.mlp

    def network():
        return mlp((1, 8, 8), 10)

    trees, names = fingerprint.of_functions(network), fingerprint.of_functions(network, by_name=True)
    monkeypatch.setattr(fl.models.mlp, "__defaults__", ((7,), *fl.models.mlp.__defaults__[1:]))
    assert fingerprint.of_functions(network, by_name=True) == names and fingerprint.of_functions(network) != trees


def test_a_module_goes_by_its_name_wherever_it_lies():
    """Records are looked up on other machines than the one that made them."""
    here, there = types.ModuleType("fl"), types.ModuleType("fl")
    here.__file__, there.__file__ = "/a/fl.py", "/b/fl.py"
    assert fingerprint.of_functions([here]) == fingerprint.of_functions([there])
    assert fingerprint.of_functions([here]) != fingerprint.of_functions([types.ModuleType("other")])

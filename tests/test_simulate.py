"""What a run does when something goes wrong: bad arguments, divergence, interruption, a full disk."""

import copy
import dataclasses
import io
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fedlib as fl
from fedlib import algorithms as A
from fedlib.data import from_arrays


@pytest.fixture(scope="module")
def data() -> fl.data.Data:
    rng = np.random.default_rng(0)
    return from_arrays(
        "noise",
        rng.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8),
        np.arange(60) % 3,
        rng.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8),
        np.arange(30) % 3,
    )


@pytest.fixture(scope="module")
def parts() -> list[torch.Tensor]:
    return list(torch.arange(60).split(15))


def model(norm: str = "none") -> torch.nn.Module:
    return fl.models.mlp((1, 4, 4), 3, norm=norm, hidden=(8,))


def sweep(data, parts, algorithm=None, make=model, **options) -> list[fl.Run]:
    options = {
        "rounds": 4,
        "lr": [0.1],
        "local_steps": 2,
        "batch_size": 5,
        "progress": False,
        "device": "cpu",
        "evaluate_every": 1,
        **options,
    }
    return fl.sweep(make, data, parts, algorithm, **options)


def weights(run: fl.Run, client: int | None = None) -> torch.Tensor:
    net = run.model(client)
    return torch.cat([t.detach().flatten() for t in (*net.parameters(), *net.buffers())])


# --- bad input ---

PROX = {"algorithm": fl.algorithms.fedprox()}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"lr": [0.1, -0.1]}, "lr must be positive and finite, got -0.1"),
        ({"lr": [math.nan]}, "lr must be positive and finite, got nan"),
        ({"lr": []}, "at least one value"),
        ({"lr": 0.1}, "lr must be a list of the values to combine, got 0.1; fl.run takes one"),
        ({"lr": "0.1"}, "lr must be a list of the values to combine, got '0.1'; fl.run takes one"),
        ({"lr": torch.tensor(0.1)}, "lr must be a list of the values to combine, got tensor"),
        ({"seed": np.array(3)}, "seed must be a list of the values to combine, got array"),
        ({"lr": ["0.1"]}, "lr must be a number, got '0.1'"),
        ({"lr": [None]}, "lr must be a number, got None"),
        ({"seed": [True]}, "seed must be a number, got True"),
        ({"weight_decay": [-1e-4]}, "weight_decay must be finite and not negative, got -0.0001"),
        ({"clip": [0.0]}, "clip must be positive, or None for no clipping, got 0.0"),
        ({"seed": [-1]}, r"seed must be a whole number from 0 to 2\*\*64 - 1, got -1"),
        ({"lr_decay": 1.5}, re.escape("lr_decay must lie in (0, 1], got 1.5")),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
        ({"wave": 0}, "wave must be a whole number of at least 1, got 0"),
        ({"settings": {"mu": [0.1]}}, "settings holds 'mu', which is no number of 'FedAvg'; it has annealing."),
        ({"settings": ["mu"]}, "settings must be a dict of a method's numbers to the values to combine, got .'mu'."),
        ({"settings": {"annealing": []}}, "annealing must hold at least one value"),
        ({"settings": {"annealing": [1.5]}}, re.escape("annealing must lie in (0, 1], got 1.5")),
        ({"settings": {"clip": [1.5]}}, "settings holds 'clip', which is an argument of its own"),
        (PROX | {"settings": {"mu": [-1]}}, "mu must be finite and not negative, got -1"),
        (PROX | {"settings": {"mu": 0.1}}, "mu must be a list of the values to combine, got 0.1; fl.run takes one"),
        (PROX | {"settings": {"Mu": [0.1]}}, "no number of 'FedProx'; it has annealing, mu. Did you mean 'mu'"),
        ({"algorithm": fl.algorithms.fixbn(2), "settings": {"after": [3]}}, "'after', which is no number of 'FixBN'"),
        ({"workers": -2}, "workers must be a whole number of at least 1, got -2"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"local_epochs": 1}, "either local_steps or local_epochs"),
        ({"local_steps": None}, "either local_steps or local_epochs"),
        ({"clients_per_round": 5}, "between 1 and the number of clients, 4; got 5"),
        ({"engine": "warp"}, "engine must be one of 'auto', 'clients', 'stacked', got 'warp'"),
        ({"augment": "mixup"}, "augment must be one of None, 'crop', 'flip', 'flip[+]crop', got 'mixup'"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"precision": "tf32"}, "needs a CUDA device"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda' or another name torch knows, got 'tpu'"),
        ({"test_parts": [torch.arange(3)]}, "one index tensor per client, got 1 for 4 clients"),
        ({"test_parts": [torch.tensor([99])] * 4}, "test_parts.0. must hold positions from 0 to 29, got 99 to 99"),
    ],
)
def test_bad_arguments_are_refused(data, parts, wrong, message):
    with pytest.raises(ValueError, match=message):
        sweep(data, parts, **wrong)


NEVER = [object(), b"1", (), {}, [], "", "0.9", "none", 2.5, -1, 0, float("nan"), float("inf"), 2**64, np.array([]), 1j]
ARGUMENTS = {  # argument of fl.run -> what of NEVER it takes
    "model": [], "data": [], "parts": [], "algorithm": [], "rounds": [2**64], "lr": [2.5, 2**64], "batch_size": [2**64],
    "seed": [0], "weight_decay": [2.5, 0, 2**64], "clip": [2.5, float("inf"), 2**64], "settings": [{}],
    "local_steps": [2**64], "local_epochs": [], "clients_per_round": [], "lr_decay": [], "augment": [],
    "normalise": [0], "test_parts": [], "device": [], "engine": [], "chunk": [2**64], "wave": [2**64],
    "workers": [2**64], "precision": [], "evaluate_every": [2**64], "checkpoint": ["0.9", "none"],
    "checkpoint_every": [2**64], "checkpoint_minutes": [2.5, 0, float("inf"), 2**64], "progress": ["", "0.9", "none"],
}  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_junk_is_refused_by_name(argument):
    """Whatever stands in the place of one argument: a ValueError that names it before anything is trained."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 4, 4), dtype=np.uint8), np.arange(12) % 3
    noise = from_arrays("noise", images, labels, images, labels)
    trained = []
    method = dataclasses.replace(A.fedavg(), correct=(lambda G, W, local: trained.append(1) or G,))
    arguments = {
        "model": model, "data": noise, "parts": [range(6), range(6, 12)], "algorithm": method, "rounds": 1, "lr": 0.1,
        "local_steps": 1, "progress": False,
    }  # fmt: skip
    fine = [(type(value), repr(value)) for value in ARGUMENTS[argument]]
    for value in NEVER:
        if (type(value), repr(value)) not in fine:
            with pytest.raises(ValueError, match=rf"\b{argument}\b"):
                fl.run(**arguments | {argument: value})
    assert not trained


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"algorithm": A.fedavg}, r"algorithm must be a method .* call it: fedavg\(\)"),
        ({"algorithm": "fedavg"}, "algorithm must be a method such as .*, got 'fedavg'"),
        ({"make": fl.models.mlp}, "model must be a function without arguments, got .*missing"),
        ({"make": lambda: 3}, "model must give a torch.nn.Module, got 3"),
        ({"make": nn.Flatten}, "model must have parameters"),
        ({"clients_per_round": True}, "clients_per_round must be a whole number of at least 1, got True"),
    ],
)
def test_what_is_easily_mistaken_is_named(data, parts, wrong, message):
    with pytest.raises(ValueError, match=message):
        sweep(data, parts, **wrong)


def test_an_algorithm_made_of_the_wrong_parts_is_refused():
    for name in ("objective", "server"):
        with pytest.raises(ValueError, match=f"{name} must be a"):
            dataclasses.replace(A.fedavg(), **{name: lambda *_: 0})


def test_parts_of_any_form_are_the_same_run(data, parts):
    expected = weights(sweep(data, parts)[0])
    table = np.arange(60).reshape(4, 15)
    for same in (table, torch.from_numpy(table), table.astype(">u2"), table.tolist(), (row for row in table)):
        assert torch.equal(weights(sweep(data, same)[0]), expected)
    tests = np.arange(28).reshape(4, 7)
    runs = [sweep(data, parts, test_parts=form)[0] for form in (tests, list(tests), torch.from_numpy(tests))]
    assert all(run.history.equals(runs[0].history) for run in runs)


@pytest.mark.parametrize("engine", ["clients", "stacked"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_needs_contiguous_images_trains(engine, channels):
    """The textbook's ``x.view(len(x), -1)`` behind a convolution; flatten gives the same numbers."""

    class LeNet(nn.Module):
        def __init__(self, flatten):
            super().__init__()
            self.a, self.b, self.flatten = nn.Conv2d(channels, 5, 3), nn.Linear(20, 3), flatten

        def forward(self, x):
            x = torch.max_pool2d(self.a(x), 2)
            return self.b(x.flatten(1) if self.flatten else x.view(x.size(0), -1))

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 6, 6, channels), dtype=np.uint8), np.arange(30) % 3
    coloured = from_arrays("noise", images, labels, images, labels)
    both = [
        sweep(coloured, [range(15), range(15, 30)], make=lambda f=f: LeNet(f), engine=engine, augment="crop")[0]
        for f in (False, True)
    ]
    torch.testing.assert_close(weights(both[0]), weights(both[1]))
    assert both[0].history["accuracy"].tolist() == both[1].history["accuracy"].tolist()


def test_a_client_tested_on_foreign_domains_is_told():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 4, 4), dtype=np.uint8), np.arange(24) % 3
    domain = np.repeat([0, 1], 12)
    two = from_arrays("two", images, labels, images, labels, domains=("ink", "chalk"), domain_train=domain,
                      domain_test=domain)  # fmt: skip
    own = [range(12), range(12, 24)]
    with pytest.warns(
        UserWarning, match="tests 2 of 2 clients on domains that they do not train on .client 0 on 'chalk'"
    ):
        sweep(two, own, test_parts=[range(0, 24, 2), range(1, 24, 2)])
    mixed = [range(0, 24, 2), range(1, 24, 2)]
    for fine in ((own, own), (mixed, own), (mixed, mixed)):
        sweep(two, fine[0], test_parts=fine[1])  # a warning would be an error here


def test_bad_partitions_are_refused(data, parts):
    with pytest.raises(ValueError, match="parts leaves client 2 without images"):
        sweep(data, [parts[0], parts[1], torch.tensor([], dtype=torch.long)])
    with pytest.raises(ValueError, match=re.escape("parts[0] must hold positions from 0 to 59, got 3 to 60")):
        sweep(data, [torch.tensor([3, 60])])
    with pytest.raises(ValueError, match="at least one client"):
        sweep(data, [])


def test_a_network_of_another_shape_says_so(data, parts):
    with pytest.raises(ValueError, match=re.escape("(1, 4, 4)")):
        sweep(data, parts, make=lambda: fl.models.mlp((1, 8, 8), 3, hidden=(8,)))
    with pytest.raises(ValueError, match="2 logits, but 'noise' has 3 classes"):
        sweep(data, parts, make=lambda: fl.models.mlp((1, 4, 4), 2, hidden=(8,)))


def test_a_text_is_neither_normalised_nor_augmented_nor_read_by_another_network():
    text = fl.texts.from_texts("letters", {"Ann": "abcab" * 30}, length=6)
    everyone = fl.partition.by_domain(text.domain_train)
    for wrong in ({"augment": "flip"}, {"normalise": True}):
        with pytest.raises(ValueError, match="augment must be None and normalise False for the text 'letters'"):
            sweep(text, everyone, make=lambda: fl.models.small_char_transformer((6,), 3), **wrong)
    with pytest.raises(ValueError, match=re.escape("does not take windows of shape (6,), as 'letters' has")):
        sweep(text, everyone, make=lambda: fl.models.small_char_transformer((7,), 3))
    with pytest.raises(ValueError, match="5 logits, but 'letters' has 3 classes"):
        sweep(text, everyone, make=lambda: fl.models.small_char_transformer((6,), 5))


def test_batch_norm_with_one_image_in_a_batch_says_so(data, parts):
    with pytest.raises(ValueError, match=r"client\(s\) 0, 1, 2, 3 .* a batch of one image"):
        sweep(data, parts, make=lambda: model("batch"), batch_size=7, local_steps=None, local_epochs=1)


# --- divergence ---


def test_a_diverging_run_stops_alone(data, parts):
    with pytest.warns(UserWarning, match="diverged"):
        fine, broken, also_fine = sweep(data, parts, lr=[0.1, 1e30, 0.2])
    assert re.search(r"FedAvg with lr 1e\+30, seed 0 diverged in round 1: .* on client\(s\) [0-3]", broken.diverged)
    assert len(broken.history) == 0 and math.isnan(broken.accuracy)
    assert torch.isfinite(weights(broken)).all()  # the last finite state: where it started
    for run, lr in ((fine, 0.1), (also_fine, 0.2)):
        alone = sweep(data, parts, lr=[lr])[0]
        assert run.diverged is None
        pd.testing.assert_frame_equal(run.history, alone.history, rtol=1e-4)


def test_a_run_that_diverges_late_keeps_its_history(data, parts):
    def late(net, x, y, told):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        late.calls += len(x) == 5  # a step of training; how the network steps is asked with two images
        return loss * (math.nan if late.calls > 2 * 2 * 4 else 1.0)  # from round 3 on: 2 steps of 4 clients a round

    late.calls = 0
    with pytest.warns(UserWarning, match="diverged in round 3"):
        run = sweep(
            data,
            parts,
            fl.algorithms.Algorithm("Late", objective=fl.algorithms.Objective(late)),
            engine="clients",
            workers=1,
        )[0]
    assert list(run.history["round"]) == [1, 2]


# --- interruption ---


class Stop(Exception):
    pass


@pytest.mark.heavy
@pytest.mark.parametrize(
    "method, norm",
    [
        ("scaffold", "layer"),
        ("fedbn", "batch"),
        ("fedexp", "none"),
        ("silobn", "batch"),
        ("standalone", "layer"),
        ("fixbn", "batch"),
    ],
)
def test_an_interrupted_run_continues_bit_for_bit(data, parts, tmp_path, monkeypatch, method, norm):
    """Client memory, local batch norm and server memory are part of a checkpoint."""
    algorithm = getattr(fl.algorithms, method)(**({"after": 2} if method == "fixbn" else {}))
    options = {"seed": [0, 1], "clients_per_round": 2, "rounds": 6, "test_parts": list(torch.arange(28).split(7))}
    whole = sweep(data, parts, algorithm, lambda: model(norm), **options)
    path = tmp_path / "deep" / "run.pt"

    def stop_after_three(self):
        if self.t == 3:
            raise Stop
        return original(self)

    original = fl.Simulation.step
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(fl.Simulation, "step", stop_after_three)
        sweep(data, parts, algorithm, lambda: model(norm), checkpoint=path, checkpoint_every=2, **options)
    rounds = []
    monkeypatch.setattr(fl.Simulation, "step", lambda self: (rounds.append(self.t), original(self)))
    continued = sweep(data, parts, algorithm, lambda: model(norm), checkpoint=path, checkpoint_every=2, **options)
    assert rounds == [2, 3, 4, 5]
    for a, b in zip(whole, continued, strict=True):
        pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)
        pd.testing.assert_frame_equal(a.clients, b.clients, check_exact=True)
        assert torch.equal(weights(a), weights(b))
        assert all(torch.equal(weights(a, k), weights(b, k)) for k in range(4))


SCRIPT = """
import io, os, pathlib, signal, sys, torch, fedlib as fl
data = fl.data.load("digits")
parts = fl.partition.n_class(data.y_train, 10, 1)
saves, save, replace = [], torch.save, os.replace
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
def half(state, target):
    saves.append(target)
    if len(saves) < 3:
        return save(state, target)
    whole = io.BytesIO()
    save(state, whole)
    pathlib.Path(target).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    killed()
if "half written" in sys.argv:
    torch.save = half
if "written" in sys.argv:
    os.replace = lambda part, path: (saves.append(part), replace(part, path) if len(saves) < 3 else killed())
if "replaced" in sys.argv:
    os.replace = lambda part, path: (saves.append(part), replace(part, path), len(saves) < 3 or killed())
run = fl.run(lambda: fl.models.slim_cnn(data.shape, 10, norm="layer", width=4), data, parts, fl.algorithms.scaffold(),
             rounds=30, lr=0.1, local_steps=2, batch_size=8, evaluate_every=3, progress=False, device="cpu",
             checkpoint=sys.argv[1], checkpoint_every=2)
print(run.history.to_csv(index=False, float_format="%.17g"))
"""


@pytest.mark.heavy
def test_killed_at_any_point_of_a_write_and_the_same_command(tmp_path):
    """What is in the file is the last round that was written whole, and the result is the uninterrupted one's."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

    def told(name: str, *point: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), str(tmp_path / name), *point]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    whole = told("whole.pt").stdout
    assert whole.count("\n") > 10
    for point, reached in {"half written": 4, "written": 4, "replaced": 6}.items():
        assert told(point, point).returncode == -signal.SIGKILL
        assert torch.load(tmp_path / point, weights_only=True)["state"]["t"] == reached
        assert told(point).stdout == whole


def test_more_rounds_continue_a_finished_run(data, parts, tmp_path):
    options = {"checkpoint": tmp_path / "run.pt", "evaluate_every": 2}
    sweep(data, parts, rounds=3, **options)
    longer = sweep(data, parts, rounds=6, **options)[0]
    whole = sweep(data, parts, rounds=6, evaluate_every=2)[0]
    pd.testing.assert_frame_equal(longer.history, whole.history, check_exact=True)
    with pytest.raises(ValueError, match="6 rounds, more than the 5"):
        sweep(data, parts, rounds=5, **options)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"lr": [0.2]}, "runs"),
        ({"batch_size": 4}, "batch_size: 5 there, 4 here"),
        ({"augment": "flip"}, "augment"),
        ({"algorithm": fl.algorithms.fedprox()}, "algorithm: 'FedAvg' there, 'FedProx' here"),
        ({"make": lambda: fl.models.mlp((1, 4, 4), 3, hidden=(9,))}, "network"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(data, parts, tmp_path, change, named):
    path = tmp_path / "run.pt"
    sweep(data, parts, checkpoint=path)
    with pytest.raises(ValueError, match=f"belongs to another configuration .*{named}"):
        sweep(data, parts, checkpoint=path, **change)


def test_a_checkpoint_of_other_data_is_refused(data, parts, tmp_path):
    path = tmp_path / "run.pt"
    sweep(data, parts, checkpoint=path)
    with pytest.raises(ValueError, match="parts"):
        sweep(data, parts[:3], checkpoint=path)


def test_a_damaged_checkpoint_is_named(data, parts, tmp_path):
    path = tmp_path / "run.pt"
    sweep(data, parts, checkpoint=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=f"{path} cannot be read .* damaged, .* give this run another file"):
        sweep(data, parts, checkpoint=path)


def test_a_full_disk_leaves_the_old_checkpoint(data, parts, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    original, saves = torch.save, []

    def full_after_one(state, target):
        saves.append(target)
        if len(saves) > 1:
            target.write_bytes(b"half a")
            raise OSError(28, "No space left on device")
        original(state, target)

    monkeypatch.setattr(torch, "save", full_after_one)
    with pytest.warns(UserWarning, match="No space left on device; the one before it is kept, training goes on"):
        run = sweep(data, parts, checkpoint=path, checkpoint_every=2)[0]
    assert len(run.history) == 4
    assert torch.load(path, weights_only=True)["state"]["t"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


# --- results ---


def test_clients_are_read_round_by_round(data, parts):
    tests = list(torch.arange(28).split(7))
    run = sweep(data, parts, test_parts=tests, evaluate_every=2)[0]
    assert list(run.clients.index) == [2, 4] and list(run.clients.columns) == [0, 1, 2, 3]
    right = run.model()(data.x_test / 255).argmax(1) == data.y_test
    assert run.clients.loc[4].tolist() == pytest.approx([right[p].float().mean().item() for p in tests])
    assert sweep(data, parts)[0].clients.shape == (4, 0)  # nothing to judge a client on


def test_seeds_differ_and_repeat(data, parts):
    first, second = sweep(data, parts, seed=[0, 1])
    again = sweep(data, parts, seed=[0, 1])[1]
    assert not torch.equal(weights(first), weights(second))
    assert torch.equal(weights(second), weights(again))


def test_numbers_of_numpy_and_torch_are_numbers(data, parts, tmp_path):
    options = {"lr": np.array([0.1]), "seed": torch.arange(1), "checkpoint": tmp_path / "run.pt"}
    first, again = sweep(data, parts, **options)[0], sweep(data, parts, **options)[0]
    assert first.config["seed"] == 0 and torch.equal(weights(first), weights(again))


def test_the_callers_random_state_is_left_alone(data, parts):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sweep(data, parts)
    assert torch.equal(torch.rand(3), expected)


def test_control_variates_really_update(data, parts):
    """With SCAFFOLD's memory stuck at zero it would be FedAvg."""
    plain, corrected = (sweep(data, parts, getattr(fl.algorithms, name)())[0] for name in ("fedavg", "scaffold"))
    assert (weights(plain) - weights(corrected)).abs().max() > 1e-3


# --- a server that is not finite ---


def run_into_nan(data, parts, at=3, what="w", rounds=6, **options):
    """FedAvg whose server's weights or memory are no numbers after round ``at`` (1, 2, ...) of the run with lr 0.1."""

    def move(w, update):
        update.memory["m"] += 1
        if update.round == at - 1:
            (update.delta if what == "w" else update.memory["m"])[:, 0] = math.nan
        return w + update.delta

    method = dataclasses.replace(A.fedavg(), server=A.ServerOpt(move, {"m": 0.0}))
    return sweep(data, parts, method, rounds=rounds, **options)


@pytest.mark.parametrize("what", ["w", "m"])
def test_a_server_that_is_not_finite_ends_the_run_before_it_is_evaluated(data, parts, what):
    with pytest.warns(
        UserWarning, match="diverged in round 3: the server's weights, memory .* not finite after its step"
    ):
        run = run_into_nan(data, parts, what=what)[0]
    assert run.history["round"].tolist() == [1, 2] and "round 3: the server's" in run.diverged
    assert torch.equal(weights(run), weights(sweep(data, parts, rounds=2)[0]))  # the last finite ones


def test_one_server_that_is_not_finite_leaves_the_others_alone(data, parts):
    """fedadam_eps whose eps underflows: where nothing has ever moved, 0 / 0."""
    black = dataclasses.replace(data, x_train=data.x_train.clone())
    black.x_train[:, :, 0] = 0  # their weights never move
    method = A.fedadam_eps(eps_decay=0.01)
    options = {"rounds": 40, "local_steps": 1, "evaluate_every": 40, "settings": {"eps_decay": [0.01, 1.0]}}
    with pytest.warns(UserWarning, match="the server's"):
        lost, kept = sweep(black, parts, method, **options)
    assert lost.diverged and not kept.diverged and weights(lost).isfinite().all() and len(kept.history) == 1
    alone = sweep(black, parts, method, **options | {"settings": {"eps_decay": [1.0]}})[0]
    assert torch.equal(weights(kept), weights(alone))


def test_batch_statistics_that_are_not_finite_end_a_run(data, parts):
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(16, 3)
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            if self.training:
                self.count += math.inf
            return self.f(x.flatten(1))

    with pytest.warns(UserWarning, match="diverged in round 1: the server's .* batch statistics"):
        run = sweep(data, parts, make=Endless, engine="clients")[0]
    assert run.history.empty and weights(run).isfinite().all()


@pytest.mark.parametrize("method", [A.fedavg(), A.fedbn()])
def test_outputs_that_overflow_are_no_accuracy(data, parts, method):
    """One step at a rate that leaves the weights finite, and not what comes of them."""
    make = model if method.name == "FedAvg" else lambda: model("batch")
    with pytest.warns(UserWarning, match="diverged in round 1: the outputs of the network not finite on test images"):
        lost, kept = sweep(data, parts, method, make=make, lr=[1e30, 0.1], rounds=1, local_steps=1)
    assert lost.history.empty and math.isnan(lost.accuracy) and weights(lost).isfinite().all()
    assert len(kept.history) == 1


def test_networks_made_with_numpy_repeat_and_leave_the_caller_alone(data, parts):
    def make():
        net = model()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.from_numpy(np.random.randn(*p.shape) * random.random()))
        return net

    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    first = weights(sweep(data, parts, make=make)[0])
    assert np.random.rand() == expected
    assert torch.equal(weights(sweep(data, parts, make=make)[0]), first)


@pytest.mark.parametrize("method", [A.scaffold(), A.scaffold(weighted=True), A.fednar(A.scaffold()), A.feddyn()])
def test_a_rate_that_underflows_stands_still(data, parts, method):
    options = {"rounds": 60, "lr_decay": 0.05, "local_steps": 1, "evaluate_every": 60}
    run = sweep(data, parts, method, **options)[0]
    assert run.diverged is None and weights(run).isfinite().all()


# --- runs that travel ---


@pytest.mark.parametrize("method", [A.fedavg(), A.fedbn()])
def test_runs_are_pickled_with_their_models(data, parts, method):
    runs = sweep(
        data, parts, method, make=lambda: model("batch"), lr=[0.1, 0.3], test_parts=np.arange(28).reshape(4, 7)
    )
    file = io.BytesIO()
    torch.save(runs, file)
    file.seek(0)
    for back in (pickle.loads(pickle.dumps(runs)), torch.load(file, weights_only=False), copy.deepcopy(runs)):
        for ours, theirs in zip(runs, back, strict=True):
            assert (
                theirs.config == ours.config
                and theirs.history.equals(ours.history)
                and theirs.clients.equals(ours.clients)
            )
            for client in (None, 0, 3):
                assert torch.equal(weights(theirs, client), weights(ours, client))
    one = len(pickle.dumps(runs[0]))
    assert one < 20 * 4 * weights(runs[0]).numel() + 60_000  # neither the data nor the other runs go along
    for wrong in (4, -1, 1.0, True):
        with pytest.raises(ValueError, match="client must be a number from 0 to 3"):
            runs[0].model(wrong)


# --- checkpoints, and disks that are no good ---


@pytest.mark.parametrize(
    "before, then, lines",
    [
        ((20, None), (40, None), range(2, 41, 2)),  # every round, then every second
        ((40, None), (50, None), range(2, 51, 2)),  # every second is the default of both
        ((40, None), (60, None), range(2, 61, 2)),  # every third was not evaluated: as before
        ((6, 2), (9, 3), None),
        ((6, 2), (8, 4), [4, 8]),
        ((6, 6), (8, None), None),
    ],
)
def test_more_rounds_have_the_lines_that_are_there(data, parts, tmp_path, before, then, lines):
    def go(rounds, every, **more):
        return sweep(data, parts, rounds=rounds, evaluate_every=every, local_steps=1, **more)[0]

    file = tmp_path / "run.pt"
    go(*before, checkpoint=file)
    if lines is None and then[1] is not None:
        with pytest.raises(ValueError, match=f"not every {then[1]}; give evaluate_every={before[1]}"):
            go(*then, checkpoint=file)
        return
    longer = go(*then, checkpoint=file)
    wanted = [6, 8] if lines is None else list(lines)
    assert longer.history["round"].tolist() == wanted
    assert torch.equal(weights(longer), weights(go(*then)))


def test_a_home_folder_is_meant_by_a_tilde(data, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    sweep(data, parts, checkpoint="~/runs/a.pt")
    assert [p.name for p in (tmp_path / "home" / "runs").iterdir()] == ["a.pt"] and not (tmp_path / "~").exists()


def test_a_folder_is_no_checkpoint_and_nobody_says_delete(data, parts, tmp_path):
    with pytest.raises(ValueError, match="checkpoint must be the path of a file, but .* is a folder") as refused:
        sweep(data, parts, checkpoint=tmp_path)
    assert "delete" not in str(refused.value)
    with pytest.raises(ValueError, match="is a device or pipe"):
        sweep(data, parts, checkpoint=os.devnull)
    with pytest.raises(ValueError, match="checkpoint must be the path of a file, got 'nul"):
        sweep(data, parts, checkpoint="nul\0l")


@pytest.mark.parametrize("where", ["file/run.pt", "file/deeper/run.pt", "x" * 300])
def test_what_cannot_be_written_is_told_before_the_first_round_and_costs_nothing(data, parts, tmp_path, where):
    (tmp_path / "file").write_text("precious")
    with pytest.warns(UserWarning) as told:
        run = sweep(data, parts, checkpoint=tmp_path / where)[0]
    first, *_, last = [str(one.message) for one in told]
    assert "cannot be written" in first and "could not write checkpoint" in last and "round 4" in last
    assert torch.equal(weights(run), weights(sweep(data, parts)[0]))
    assert (tmp_path / "file").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_trying_a_path_leaves_nothing(data, parts, tmp_path):
    def stop(w, update):
        raise KeyboardInterrupt

    method = dataclasses.replace(A.fedavg(), server=A.ServerOpt(stop))
    with pytest.raises(KeyboardInterrupt):
        sweep(data, parts, method, checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_comes_to_stand_in_the_way_costs_no_run(data, parts, tmp_path):
    file = tmp_path / "run.pt"

    def move(w, update):
        if update.round == 1:  # after a checkpoint has been written
            file.unlink()
            file.mkdir()
        return w + update.delta

    method = dataclasses.replace(A.fedavg(), server=A.ServerOpt(move))
    with pytest.warns(UserWarning, match="could not write checkpoint .*training goes on"):
        run = sweep(data, parts, method, checkpoint=file, checkpoint_every=1)[0]
    assert torch.equal(weights(run), weights(sweep(data, parts)[0]))


def test_a_network_that_cannot_be_asked_is_told_of_before_the_first_round(data, parts, tmp_path):
    """A loss that takes full batches only: it trains, but a checkpoint could not tell its network from others."""
    rounds = []

    def of_five(net, x, y, told):
        rounds.append(len(x))
        return nn.functional.cross_entropy(net(x.reshape(5, 1, 4, 4)), y)

    method = dataclasses.replace(A.fedavg(), objective=A.Objective(of_five))
    with pytest.raises(
        ValueError, match="^checkpoint: what the network computes is asked on 4 images, .* failed: Runtime"
    ):
        sweep(data, parts, method, engine="clients", checkpoint=tmp_path / "run.pt")
    assert rounds == [2, 4] and len(sweep(data, parts, method, engine="clients")[0].history) == 4


# --- measure ---


def norm_of(net):
    assert not net.training
    return {"norm": float(nn.utils.parameters_to_vector(net.parameters()).norm().detach())}


@pytest.mark.parametrize("engine", ["clients", "stacked"])
def test_what_is_measured_of_a_network_is_a_column(engine):
    data = fl.data.load("digits")
    parts = fl.partition.iid(data.y_train, 4)

    def spoilt(net):
        found = norm_of(net)
        with torch.no_grad():
            for p in net.parameters():  # it is a copy: training goes on with the weights as they were
                p.zero_()
        return found

    options = {"rounds": 4, "evaluate_every": 2, "lr": [0.1], "seed": [0, 1], "local_steps": 2, "progress": False}
    runs, plain = (
        fl.sweep(lambda: fl.models.mlp(data.shape, 10), data, parts, engine=engine, measure=measure, **options)
        for measure in (spoilt, None)
    )
    for run, without in zip(runs, plain, strict=True):
        assert [*run.history.columns] == [*without.history.columns, "norm"]
        assert run.history.drop(columns="norm").equals(without.history)
        assert run.history["norm"].iloc[-1] == pytest.approx(norm_of(run.model())["norm"])
        assert run.history["norm"].nunique() == 2


def test_what_is_measured_decides_whether_a_checkpoint_goes_on(tmp_path):
    data = fl.data.load("digits")
    parts = fl.partition.iid(data.y_train, 4)
    options = {"lr": 0.1, "local_steps": 1, "progress": False, "checkpoint": tmp_path / "here.pt"}
    fl.run(lambda: fl.models.mlp(data.shape, 10), data, parts, rounds=1, measure=norm_of, **options)
    run = fl.run(lambda: fl.models.mlp(data.shape, 10), data, parts, rounds=2, measure=norm_of, **options)
    assert run.history["norm"].notna().all() and len(run.history) == 2
    with pytest.raises(ValueError, match="belongs to another configuration"):
        fl.run(
            lambda: fl.models.mlp(data.shape, 10), data, parts, rounds=3, measure=lambda net: {"norm": 0.0}, **options
        )


@pytest.mark.parametrize(
    "measure, method, norm, message",
    [
        (lambda net: {"accuracy": 1.0}, "fedavg", "none", r"no columns of the history already, got \['accuracy'\]"),
        (lambda net: 1.0, "fedavg", "none", "measure must give a dict of names to numbers, got 1.0"),
        (lambda net: {"a": "b"}, "fedavg", "none", "measure must give a dict of names to numbers"),
        (3, "fedavg", "none", "measure must be a function of the network, got 3"),
        (norm_of, "fedbn", "batch", "measure is asked of one network for all, but with FedBN parts stay"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, method, norm, message):
    data = fl.data.load("digits")
    parts = fl.partition.iid(data.y_train, 4)
    with pytest.raises(ValueError, match=message):
        fl.run(
            lambda: fl.models.mlp(data.shape, 10, norm=norm), data, parts, getattr(fl.algorithms, method)(), rounds=1,
            lr=0.1, local_steps=1, measure=measure, progress=False,
        )  # fmt: skip

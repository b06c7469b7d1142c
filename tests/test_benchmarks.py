"""The harness of benchmarks/: that its runners do the same work, and say so when they do not. No timings."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fedlib as fl

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "title": "tiny",
    "data": "digits",
    "channels": [4],
    "kernel": 3,
    "hidden": [8],
    "bias": True,
    "clients": 10,
    "clients_per_round": 3,
    "batch_size": 16,
    "local_steps": None,
    "local_epochs": 1,
    "lr": 0.1,
    "seed": 2,
}


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", ROOT / "benchmarks" / "peers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers"]
    sys.path.remove(str(ROOT / "benchmarks" / "runners"))


class Alone:
    """Turns of a runner in this process: always its own."""

    def wait(self):
        """No wait."""

    over = wait


RESNET = {"model": "resnet18", "options": {"norm": "group", "width": 4}}
TEXT = {
    "model": "char_transformer",
    "options": {"dropout": 0.0, "width": 8, "layers": 1, "feedforward": 8},
    "data": None,
    "shape": [6],
    "classes": 5,
    "images": 20,
}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "other, layout",
    [
        ({}, "as written"),
        ({}, "channels-last"),
        (RESNET, "as written"),
        (RESNET, "channels-last"),
        (TEXT, "as written"),
    ],
)
def test_fedlib_and_the_plain_loop_do_the_same_work(peers, other, layout, tmp_path):
    """Unequal clients (but for the text), a sample of them, a last batch that is not full."""
    finals, path = {}, tmp_path / "work.npz"
    tiny = {key: value for key, value in {**TINY, **other}.items() if value is not None or key != "data"}
    peers.prepare(path, tiny, name="tiny", rounds=3, layout=layout, precision="float64")
    for runner in ("plain", "fedlib"):
        work = importlib.import_module("common").Work(path)
        net = importlib.import_module(f"{runner}_runner").train(work, Alone(), {})
        finals[runner] = torch.nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
    assert len(set(map(len, work.parts))) > 1 or other is TEXT
    np.testing.assert_allclose(finals["fedlib"], finals["plain"], rtol=0, atol=1e-14)
    assert np.abs(finals["plain"] - work.start).max() > 1e-3  # it has trained


def test_other_work_is_an_error(peers, monkeypatch):
    def launched(who, works, python, folder, left_out):
        return [SimpleNamespace(finish=lambda: np.array([1.0, 1.0 + 1e-11 * (who[0].runner == "fedlab")]))]

    monkeypatch.setattr(peers, "launch", launched)
    who = [peers.Contestant(runner, peers.AS_WRITTEN) for runner in ("fedlib", "plain")]
    assert peers.agreement({"tiny": TINY}, None, who)["differences"]["tiny"]["fedlib (as written)"] == 0
    with pytest.raises(RuntimeError, match="FedLab has not done the work of tiny: its final weights differ by 1.0e-11"):
        peers.agreement({"tiny": TINY}, None, [*who, peers.Contestant("fedlab", peers.AS_WRITTEN)])


@pytest.mark.heavy
def test_runners_take_turns_and_the_missing_are_named(peers):
    who = [
        peers.Contestant("plain", peers.AS_WRITTEN, {"threads": 1}),
        peers.Contestant("fedlib", peers.CHANNELS_LAST),
        peers.Contestant("fedlab", peers.AS_WRITTEN),
    ]
    result = peers.race("tiny", TINY, None, 2, "cpu", who)  # None: no environments of their own, so no FedLab
    assert [line["label"] for line in result["lines"]] == ["plain loop, 1 thread", "fedlib"]
    for line in result["lines"]:
        assert len(line["seconds"]) == 2 and min(line["seconds"]) > 0 and line["startup"] > 0
        assert line["peak_mb"] is None or line["peak_mb"] > 50
    ((name, reason),) = result["left_out"].items()
    assert name == "FedLab (as written)" and "No module named 'fedlab'" in reason
    json.dumps(result)


def test_the_schedule_is_what_fedlib_draws(peers):
    parts = [np.arange(7), np.arange(7, 20), np.arange(20, 30)]
    s = {**TINY, "clients_per_round": 2, "batch_size": 4, "seed": 5}
    cohorts, index, size = peers.draw(s, parts, 3)
    assert index.shape == (3, 2, 4, 4) and size.shape == (3, 2, 4)
    for t in range(3):
        rng = np.random.default_rng([5, t])
        assert list(cohorts[t]) == sorted(rng.choice(3, 2, replace=False))
        for slot, k in enumerate(cohorts[t]):
            rng = np.random.default_rng([5, t, 1 + k])
            batches = fl.schedule.local_batches(rng, parts[k], 4, local_epochs=1)
            assert [len(b) for b in batches] == [n for n in size[t, slot] if n]
            for step, batch in enumerate(batches):
                np.testing.assert_array_equal(index[t, slot, step, : len(batch)], batch)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")
def test_work_beside_a_turn_is_seen(peers):
    """The others' is all that the cores did, without the session whose turn it is."""
    before = peers.worked(without=-1)
    burner = subprocess.Popen(
        [sys.executable, "-c", "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        burner.stdout.readline()
        assert peers.worked(without=-1) - before >= 0.45
        assert peers.worked(without=-1) - peers.worked(without=burner.pid) >= 0.4
    finally:
        burner.kill()

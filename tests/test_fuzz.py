"""Federations at random: whatever is asked for, a run is finite or says that it is not, repeats, and can be continued.

A few in every run; ``pytest -n 0 -m slow tests/test_fuzz.py`` tries some minutes of them.
"""

import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fedlib as fl
from fedlib import algorithms as A

METHODS = {
    "FedAvg": A.fedavg, "FedProx": A.fedprox, "SCAFFOLD": A.scaffold, "FedDyn": A.feddyn, "FedAvgM": A.fedavgm,
    "FedAdam": A.fedadam, "FedAdam eps": A.fedadam_eps, "FedYogi": A.fedyogi, "FedExP": A.fedexp, "FedLC": A.fedlc,
    "FedRS": A.fedrs, "FedNAR": lambda: A.fednar(A.fedavg()), "FedNAR on SCAFFOLD": lambda: A.fednar(A.scaffold()),
}  # fmt: skip
FORMS = {
    "tensors": lambda parts: [torch.from_numpy(p) for p in parts],
    "arrays": lambda parts: parts,
    "lists": lambda parts: [p.tolist() for p in parts],
    "small integers": lambda parts: [p.astype(">u2") for p in parts],
    "a generator": lambda parts: (p for p in parts),
}
NETWORKS = {
    "perceptron": lambda c, classes: fl.models.mlp((c, 6, 6), classes, hidden=(5,)),
    "dropout": lambda c, classes: nn.Sequential(
        nn.Flatten(), nn.Linear(36 * c, 6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, classes)
    ),
    "layer": lambda c, classes: fl.models.slim_cnn((c, 6, 6), classes, norm="layer", width=3, hidden=5),
    "view": lambda c, classes: View(c, classes),
}


class View(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 3, 3), nn.Linear(48, classes)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(len(x), -1))


@st.composite
def federations(draw):
    """Arguments of ``fl.sweep``, and how to change what must change nothing."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    classes, channels = draw(st.integers(2, 4)), draw(st.sampled_from([1, 3]))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    images = rng.integers(0, 256, (sum(sizes), 6, 6, channels), dtype=np.uint8)
    labels = rng.integers(0, classes, sum(sizes))
    test = rng.integers(0, 256, (7, 6, 6, channels), dtype=np.uint8), rng.integers(0, classes, 7)
    data = fl.data.from_arrays("noise", images, labels, *test, classes=[str(c) for c in range(classes)])
    parts = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    form, network = draw(st.sampled_from(sorted(FORMS))), draw(st.sampled_from(sorted(NETWORKS)))
    by_epochs = draw(st.booleans())
    return {
        "model": lambda: NETWORKS[network](channels, classes),
        "data": data,
        "algorithm": METHODS[draw(st.sampled_from(sorted(METHODS)))](),
        "lr": draw(st.lists(st.sampled_from([1e-30, 1e-3, 0.1, 1.0, 1e10, 1e30]), min_size=1, max_size=2, unique=True)),
        "lr_decay": draw(st.sampled_from([1.0, 0.9, 1e-12])),
        "weight_decay": [draw(st.sampled_from([0.0, 0.01]))],
        "clip": [draw(st.sampled_from([None, 0.5]))],
        "seed": draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=2, unique=True)),
        "batch_size": draw(st.integers(1, 6)),
        "local_epochs" if by_epochs else "local_steps": draw(st.integers(1, 2)),
        "clients_per_round": draw(st.integers(1, len(sizes))),
        "augment": draw(st.sampled_from([None, "crop", "flip+crop"])),
        "normalise": draw(st.booleans()),
        "precision": draw(st.sampled_from(["float32", "float64"])),
        "engine": draw(st.sampled_from(["clients", "stacked"])),
        "workers": 1,
        "evaluate_every": 1,
        "progress": False,
    }, (lambda: FORMS[form](parts))


def numbers(run):
    return torch.cat([t.detach().double().flatten() for t in run.model().state_dict().values()])


def check(federation):
    options, parts = federation
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", UserWarning)
        file = Path(folder) / "run.pt"
        whole = fl.sweep(parts=parts(), rounds=3, **options)
        other = {"engine": "clients" if options["engine"] == "stacked" else "stacked", "wave": 1}
        engine = fl.sweep(parts=parts(), rounds=3, **options | other)
        fl.sweep(parts=parts(), rounds=1, checkpoint=file, **options)
        continued = fl.sweep(parts=parts(), rounds=3, checkpoint=file, **options)
    for run, again, twin in zip(whole, continued, engine, strict=True):
        assert numbers(run).isfinite().all()
        assert run.history["accuracy"].between(0, 1).all() and run.history["loss"].map(math.isfinite).all()
        assert (len(run.history) == 3) == (run.diverged is None)
        assert again.history.equals(run.history) and torch.equal(numbers(again), numbers(run))
        if options["precision"] == "float64" and max(options["lr"]) <= 0.1 and run.diverged is twin.diverged is None:
            torch.testing.assert_close(numbers(twin), numbers(run), rtol=1e-6, atol=1e-8)


@given(federations())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_few_federations(federation):
    check(federation)


@pytest.mark.slow
@given(federations())
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_federations(federation):
    check(federation)

"""fedlib.side_by_side: the same results as one after another, and nothing lost on the way."""

import os
import warnings

import pandas as pd
import pytest
import torch

import fedlib as fl
from fedlib.parallel import side_by_side

needs_processes = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU everything stays in one process")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(fl.workers, "cores", lambda: 2)


def sweep(norm):
    data = fl.data.load("digits")
    parts = fl.partition.n_class(data.y_train, 10, 1, seed=0)
    return fl.sweep(
        lambda: fl.models.slim_cnn(data.shape, 10, norm=norm, width=4, hidden=8),
        data,
        parts,
        rounds=2,
        lr=[0.03, 0.1],
        seed=[0, 1],
        local_steps=2,
        batch_size=8,
        progress=False,
    )


@pytest.mark.heavy
@needs_processes
def test_runs_are_the_same_bit_for_bit():
    here = {norm: sweep(norm) for norm in ("none", "layer", "batch")}
    there = side_by_side(sweep, ("none", "layer", "batch"), first=["batch"], progress=False)
    assert list(there) == list(here)
    for norm, runs in here.items():
        for one, other in zip(runs, there[norm], strict=True):
            assert one.config == other.config
            pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
            mine, theirs = (run.model().state_dict() for run in (one, other))
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.heavy
@needs_processes
def test_each_call_has_one_core_of_a_process_of_its_own():
    wanted = 3  # a lambda, and a variable of this function
    found = side_by_side(
        lambda k: (k * wanted, os.getpid(), fl.workers.cores(), torch.get_num_threads()), range(8), progress=False
    )
    assert [value for value, *_ in found.values()] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert os.getpid() not in {pid for _, pid, *_ in found.values()}
    assert {(cores, threads) for _, _, cores, threads in found.values()} == {(1, 1)}


def test_one_core_or_one_key_stays_here(monkeypatch):
    assert side_by_side(lambda k: os.getpid(), "a") == {"a": os.getpid()}
    monkeypatch.setattr(fl.workers, "cores", lambda: 1)
    found = side_by_side(lambda k: os.getpid(), "ab")
    assert found == {"a": os.getpid(), "b": os.getpid()}
    assert side_by_side(sweep, []) == {}


@needs_processes
def test_warnings_come_back():
    def warn(k):
        warnings.warn(f"{k} diverged", stacklevel=1)
        return k

    with pytest.warns(UserWarning) as caught:
        assert side_by_side(warn, "ab", progress=False) == {"a": "a", "b": "b"}
    assert sorted(str(w.message) for w in caught) == ["a diverged", "b diverged"]


@needs_processes
def test_an_error_comes_back_and_the_next_call_works():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda k: 1 // k, [2, 0, 1, 3, 4, 5], progress=False)
    assert side_by_side(lambda k: 1 // k, [1, 2], progress=False) == {1: 1, 2: 0}


def test_a_key_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match=r"keys must differ from one another, got \['a', 'b', 'a'\]"):
        side_by_side(str, "aba")

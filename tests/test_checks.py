"""Shared checks of arguments, and files that are written whole or not at all."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from fedlib import checks, files


@pytest.mark.parametrize("value", [1, 7, np.int64(3), torch.tensor(2)])
def test_whole_numbers_pass(value):
    assert checks.is_whole(value)
    checks.whole(rounds=value)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, np.True_, "1", None, math.nan, [1], np.array([1, 2])])
def test_what_is_no_whole_number_of_at_least_1_is_refused(value):
    with pytest.raises(
        ValueError, match=r"^rounds must be a whole number of at least 1, got " + re.escape(repr(value))
    ):
        checks.whole(seed=5, rounds=value)


def test_another_least_number():
    checks.whole(0, seed=0, least=3)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got -1"):
        checks.whole(0, seed=-1)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3), Fraction(1, 3), math.inf, math.nan])
def test_numbers(value):
    assert checks.is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, [1.0], torch.tensor(1.0)])
def test_what_is_no_number(value):
    assert not checks.is_number(value)
    for check in (checks.positive, checks.fraction):
        with pytest.raises(ValueError, match=f"^mu must .*, got {re.escape(repr(value))}$"):
            check(lr=0.1, mu=value)


def test_bounds():
    checks.positive(a=1e-9, b=5)
    checks.fraction(a=0, b=1, c=0.5)
    for value in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"lr must be a positive finite number, got {value!r}"):
            checks.positive(lr=value)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=re.escape(f"mix must lie in [0, 1], got {value!r}")):
            checks.fraction(mix=value)


def test_a_choice_names_what_there_is_and_the_nearest():
    checks.choice("norm", "ln-g", ("none", "ln-g"))
    for value, tail in (("LN_G", " Did you mean 'ln-g'?"), ("qqq", ""), (None, " Did you mean 'none'?")):
        with pytest.raises(ValueError) as error:
            checks.choice("norm", value, ("none", "ln-g"))
        assert str(error.value) == f"norm must be one of none, ln-g; got {value!r}.{tail}"


def test_a_hint_gives_two_names_at_most():
    assert checks.hint("resnet", ["resnet18", "mlp", "resnet20"]) == " Did you mean 'resnet20' or 'resnet18'?"
    assert checks.hint("cifer10", {"cifar10": 1, "mnist": 2}) == " Did you mean 'cifar10'?"
    assert checks.hint("qqq", ["cifar10"]) == checks.hint("cifar10", []) == ""


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    for text in ("first", "second"):
        before = path.read_text(encoding="utf-8") if path.exists() else None
        with files.replacing(path) as part:
            part.write_text(text, encoding="utf-8")
            assert (
                part.parent == path.parent and (path.read_text(encoding="utf-8") if path.exists() else None) == before
            )
        assert path.read_text(encoding="utf-8") == text and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_beside(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("whole", encoding="utf-8")
    with pytest.raises(error), files.replacing(str(path)) as part:
        part.write_text("half", encoding="utf-8")
        raise error
    assert path.read_text(encoding="utf-8") == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_writes_nothing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("whole", encoding="utf-8")
    with pytest.raises(FileNotFoundError), files.replacing(path):
        pass
    assert path.read_text(encoding="utf-8") == "whole"


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "first" and list(tmp_path.iterdir()) == [path]  # who ends last

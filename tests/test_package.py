"""fedlib in two halves: it imports and trains without the packages of the book, which is loaded when asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedlib as fl

BOOK = ("chapter", "claims", "construct", "explore", "explore_runs", "pictures", "plots")
IMPORTED = """
import json, sys
import fedlib
print(json.dumps(sorted({"IPython", "ipywidgets", "loky", "matplotlib", "seaborn"} & set(sys.modules))))
"""
ALONE = """
import json, sys


class Absent:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {"IPython", "ipywidgets", "loky", "matplotlib", "seaborn"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent)
import fedlib as fl

data = fl.data.load("digits")
parts = fl.partition.n_class(data.y_train, clients=10, n=1)
model = lambda: fl.models.slim_cnn(data.shape, 10, norm="layer", width=4, hidden=8)
run = fl.run(model, data, parts, rounds=1, lr=0.03, local_steps=1, batch_size=8, progress=False)
found = {"rounds": list(run.history["round"]), "here": fl.side_by_side(abs, [-1])[-1]}
for statement in (
    "fl.plots", "fl.chapter", "fl.explore", "fl.explore_runs", "from fedlib import plots", "fl.parallel._executor(2)",
    "fl.data.load('digit_domains')",
):
    try:
        exec(statement)
        found[statement] = None
    except ImportError as error:
        found[statement] = str(error)
from pathlib import Path
from fedlib.book import run

try:
    run.execute(Path("book/benchmarks.ipynb"), {}, None)
except ValueError as error:
    found["run"] = str(error)
print(json.dumps(found))
"""


def python(code: str):
    """What a new Python prints in JSON when it runs the code."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.heavy
def test_importing_it_brings_no_package_of_the_book():
    assert python(IMPORTED) == []


@pytest.mark.heavy
def test_without_them_it_trains_and_the_book_says_what_to_install():
    found = python(ALONE)
    assert found.pop("rounds") == [1] and found.pop("here") == 1
    assert found.pop("run").endswith("has no cell that is tagged 'parameters'")  # so far it came without IPython
    assert found.pop("fl.data.load('digit_domains')").endswith("needs matplotlib's fonts: pip install matplotlib")
    assert found == {
        "fl.plots": 'fl.plots belongs to the book and needs matplotlib: install "fedlib[book]"',
        "fl.chapter": 'fl.chapter belongs to the book and needs matplotlib: install "fedlib[book]"',
        "fl.explore": 'fl.explore belongs to the book and needs ipywidgets: install "fedlib[book]"',
        "fl.explore_runs": 'fl.explore_runs belongs to the book and needs ipywidgets: install "fedlib[book]"',
        "from fedlib import plots": 'fl.plots belongs to the book and needs matplotlib: install "fedlib[book]"',
        "fl.parallel._executor(2)": 'processes side by side need loky: install "fedlib[book]"',
    }


def test_the_book_is_there_when_asked_for():
    assert {name: getattr(fl, name).__name__ for name in BOOK} == {
        name: name if name.startswith("explore") else f"fedlib.book.{name}" for name in BOOK
    }
    assert set(BOOK) | set(fl.__all__) <= set(dir(fl))


def test_an_unknown_name_is_refused_as_in_any_module():
    with pytest.raises(AttributeError, match="module 'fedlib' has no attribute 'plot'"):
        fl.plot  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'plot' from 'fedlib'"):
        from fedlib import plot  # noqa: F401

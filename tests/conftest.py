import os

# One thread for each operation, set before torch is imported, in notebooks' kernels too: files run side by side, or
# beside other work, and then threads that wait for each other take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools

import executed
import pytest
from browsing import browser, server, tab  # noqa: F401  (fixtures)

import fedlib as fl
from fedlib import data, experiment

LONG = {"notebook", "site", "colab", "heavy", "slow"}  # markers of what a quick check leaves out


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the marked
def pytest_collection_modifyitems(items):
    """Mark cells of notebooks and what is quick, skip what the build has executed, begin with what takes minutes."""
    cells = [item for item in items if item.path.suffix == ".ipynb"]
    when = functools.cache(executed.when) if cells and executed.holds(executed.CACHE) else lambda *_: None
    for cell in cells:
        cell.add_marker("notebook")
        if time := when(cell.path, executed.CACHE):
            reason = f"{cell.path.name}: executed by the build at {time:%Y-%m-%d %H:%M} UTC, on what is here now"
            cell.add_marker(pytest.mark.skip(reason=reason))
    for item in items:
        if not LONG & {mark.name for mark in item.iter_markers()}:
            item.add_marker("quick")
    # files that take minutes come first, so that none of them is left alone on one core at the end
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.name != "test_colab.py")


@pytest.fixture
def needs_data():
    """Function (name, *files) -> folder of data sets; skips the test unless all files are below that folder."""

    def folder(name, *files):
        root = data.data_root()
        missing = [file for file in files if not (root / file).exists()]
        if missing:
            pytest.skip(f"{name} is not here: no {', '.join(missing)} in {root}")
        return root

    return folder


@pytest.fixture
def sweeps_here(monkeypatch):
    """Function (tell) -> list: sweeps of an experiment run in this process from here on, and the list has for each what
    ``tell`` says of its options."""

    def watch(tell):
        ran = []

        def side_by_side(function, keys, *, each, **_):
            found = {}
            for key in keys:
                found[key] = function(key)
                each(key, found[key])
            return found

        def sweep(*given, **options):
            ran.append(tell(options))
            return fl.sweep(*given, **options | {"progress": False})

        monkeypatch.setattr(experiment, "side_by_side", side_by_side)
        monkeypatch.setattr(experiment, "sweep", sweep)
        return ran

    return watch

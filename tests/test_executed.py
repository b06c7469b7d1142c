"""Which notebooks need not be executed again: the build has done it, on what is there now."""

import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import executed
import nbformat
import pytest
from jupyter_cache import get_cache

ROOT = Path(__file__).resolve().parents[1]
MODULE = '''"""A module."""

import math  # of the standard library


def area(r):
    """Of a circle."""
    return math.pi * r**2
'''
FILES = {
    "fedlib/__init__.py": '"""The package."""\n',
    "fedlib/circle.py": MODULE,
    "fedlib/book/page.py": MODULE,
    "fedlib/words.txt": "some words",
    "book/params/01_x.quick.yaml": "rounds: 2",
    "book/results/01_x.cpu.json": "{}",
    "book/results/01_x.quick.json": "{}",
    "benchmarks/results/mlp.json": "{}",
}


@pytest.fixture
def project(tmp_path):
    """A folder laid out as ours is."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["fedlib/circle.py", "fedlib/book/page.py"])
@pytest.mark.parametrize(
    "old, new, counts",
    [
        ("Of a circle.", "Of a disc.", False),
        ('    """Of a circle."""\n', "", False),
        ("# of the standard library", "# pi", False),
        ("\n\n\ndef", "\n\n# now\ndef", False),
        ("r**2", "(r**2)", False),
        ("r**2", "r**3", True),
        ("(r)", "(r=1)", True),
        ("math.pi", '"math.pi"', True),
    ],
)
def test_the_digest_follows_the_code(project, name, old, new, counts):
    before = executed.digest(project)
    changed = MODULE.replace(old, new)
    assert changed != MODULE
    (project / name).write_text(changed, encoding="utf-8")
    assert (executed.digest(project) != before) is counts


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".py")])
def test_the_digest_follows_what_notebooks_read_but_not_what_they_write(project, name):
    before = executed.digest(project)
    (project / name).write_text("other", encoding="utf-8")
    assert (executed.digest(project) != before) is ("results/01_x.quick" not in name)


def test_a_moved_module_changes_the_digest(project):
    before = executed.digest(project)
    shutil.move(project / "fedlib/circle.py", project / "fedlib/book/circle.py")
    assert executed.digest(project) != before


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def built(project):
    """The folder with a notebook and a cache, in which it was executed on what is there now."""
    notebook, cache = project / "book" / "01_x.ipynb", project / "_build" / ".jupyter_cache"
    write_notebook(notebook, "a = 1", "assert a == 1")
    executed.write_stamp(cache, executed.state(project))
    get_cache(cache).cache_notebook_file(str(notebook), check_validity=False)
    return project, notebook, cache


def test_an_executed_notebook_is_known_with_its_time(built):
    project, notebook, cache = built
    assert executed.holds(cache, project)
    assert abs(datetime.now(timezone.utc).replace(tzinfo=None) - executed.when(notebook, cache)).total_seconds() < 60


def test_text_between_cells_is_not_executed(built):
    _, notebook, cache = built
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("# Title", "# Another title"))
    assert executed.when(notebook, cache)


def test_a_changed_cell_is_executed_again(built):
    _, notebook, cache = built
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("a = 1", "a = 2"))
    assert executed.when(notebook, cache) is None


def test_changed_code_is_executed_again(built):
    project, _, cache = built
    (project / "fedlib/circle.py").write_text(MODULE.replace("r**2", "r**3"), encoding="utf-8")
    assert not executed.holds(cache, project)


def test_another_version_of_a_package_is_executed_again(built, monkeypatch):
    version = executed.metadata.version
    monkeypatch.setattr(executed.metadata, "version", lambda name: "0.1" if name == "numpy" else version(name))
    assert not executed.holds(built[2], built[0])


def test_a_missing_package_is_executed_again(built, monkeypatch):
    monkeypatch.setattr(executed, "PACKAGES", (*executed.PACKAGES, "no-such-package"))
    assert executed.state()["packages"]["no-such-package"] is None
    assert not executed.holds(built[2], built[0])


@pytest.mark.parametrize("part", ["python_version", "python_implementation", "machine"])
def test_another_interpreter_is_executed_again(built, monkeypatch, part):
    monkeypatch.setattr(executed.platform, part, lambda: "another")
    assert not executed.holds(built[2], built[0])


@pytest.mark.parametrize("text", [None, "", "{", "{}"])
def test_without_a_whole_record_all_is_executed(built, text):
    project, _, cache = built
    stamp = cache / executed.STAMP
    stamp.unlink() if text is None else stamp.write_text(text, encoding="utf-8")
    assert not executed.holds(cache, project)


def test_without_a_cache_all_is_executed(built):
    project, notebook, cache = built
    shutil.rmtree(cache)
    assert not executed.holds(cache, project) and executed.when(notebook, cache) is None
    executed.write_stamp(cache, executed.state(project))  # a build that has not come to its first notebook
    assert executed.when(notebook, cache) is None
    assert [path.name for path in cache.iterdir()] == [executed.STAMP]


@pytest.mark.heavy
def test_pytest_skips_by_name_what_was_executed_and_runs_the_rest(built):
    project, notebook, _ = built
    write_notebook(project / "book" / "02_y.ipynb", "a = 3", "assert a == 3")
    shutil.copytree(ROOT / "book" / "_ext", project / "book" / "_ext")
    for file in ("conftest.py", "browsing.py"):  # the second is imported by the first
        shutil.copy(ROOT / "tests" / file, project)
    shutil.rmtree(project / "fedlib")  # conftest wants the real one
    executed.write_stamp(project / "_build" / ".jupyter_cache", executed.state(project))
    (project / "pytest.ini").write_text(
        "[pytest]\npythonpath = book/_ext\nmarkers =\n  notebook\n  quick\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-n", "0", "-rs", "book"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert "2 passed, 2 skipped" in result.stdout, result.stdout + result.stderr
    assert re.search(r"SKIPPED \[2\] .*01_x.ipynb: executed by the build at [-\d]+ [\d:]+ UTC, on", result.stdout)


@pytest.mark.heavy
def test_the_build_drops_a_cache_that_no_longer_holds(built):
    import fedbook

    project, notebook, cache = built
    app, config = SimpleNamespace(), SimpleNamespace(nb_execution_cache_path=str(cache), fedbook_state="")
    fedbook.drop_stale_notebooks(app, config)  # the cache is of this small project, not of ours
    assert executed.holds(cache) and executed.when(notebook, cache) is None
    get_cache(cache).cache_notebook_file(str(notebook), check_validity=False)
    fedbook.drop_stale_notebooks(app, config)
    assert executed.holds(cache) and executed.when(notebook, cache)

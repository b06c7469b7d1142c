"""Every preset of every chapter, made small, runs on Colab's older packages and continues where it stopped.

The environment lays Colab's versions over the one that runs the tests: ipywidgets 7, IPython 7, an older NumPy, pandas
and matplotlib (Colab's backend-info of 19 August 2026). torch is the one at hand. fedlib is installed there from its
wheel, and each notebook lies alone in a folder, as on Colab.

One preset is tried in every run, by rotation; the others are ``slow``.
"""

import datetime
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedlib import data, domains, models

pytestmark = pytest.mark.colab
ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PRESETS = sorted((BOOK / "params").glob("*.yaml"))
COLAB = [
    "ipywidgets==7.7.1",
    "ipython==7.34.0",
    "ipykernel==6.17.1",
    "numpy==2.1.3",
    "pandas==2.2.2",
    "matplotlib==3.10.0",
]


# ---- presets made small: whatever says how long and how large, never what there is to do

LEAST = {  # a parameter's name, or its last word, or a key in one: at most this
    **{"rounds": 2, "epochs": 2, "steps": 2, "every": 1, "seeds": 1, "train": 150, "test": 20},
    "phase_rounds": 1,  # of each block
    **{"test_images": 60, "na_test_images": 60},  # there are no more
    **{"images": 150, "validation_images": 50, "na_validation_images": 50},  # of the 200 that there are
    **{"early": 2},  # rounds
    **{"batch_size": 8, "memory_batch": 2, "clients_per_round": 2},
    **{"clients": 20, "size": 64, "width": 24, "hidden": 16, "out": 8, "batch": 32},
}
AS_IT_IS = {  # what is a choice in spite of such a name
    "rl_width",  # the end of its grid of group sizes
    *("na_size", "vit_size", "fed_size"),  # of groups of features
}
NARROW = {"width": 8, "hidden": 16, "feedforward": 16}  # of networks that are built by name; eight groups need 16


def small(values):
    """A preset's values, or a dict of them, made small by the kind of each."""
    shrunk = {name: _small(name, value) for name, value in values.items()}
    for options, model in (("model_options", "model"), ("model_options", "model_name"), ("fed_options", "fed_model")):
        if model in values and options in values:
            known = inspect.signature(models.MODELS[values[model]]).parameters
            narrow = {name: least for name, least in NARROW.items() if name in known}
            hidden = values[options].get("hidden", known["hidden"].default if "hidden" in known else None)
            if isinstance(hidden, (list, tuple)):
                narrow["hidden"] = [NARROW["hidden"]] * len(hidden)
            shrunk[options] = values[options] | narrow
    return shrunk


def _small(name, value):
    if name.endswith("seeds") and isinstance(value, list):
        return [_small(name, value[0]) if isinstance(value[0], list) else value[0]]
    if isinstance(value, dict):
        return small(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return (
        min(value, LEAST.get(name, LEAST.get(name.split("_")[-1], value))) if whole and name not in AS_IT_IS else value
    )


# ---- data made small: some of what is here, or images that are made up


def sets_of(values):
    """Names of data sets anywhere in a preset."""
    found = [item for value in values.values() for item in (value if isinstance(value, list) else [value])]
    nested = [name for item in found if isinstance(item, dict) for name in sets_of(item)]
    return sorted({*nested, *(item for item in found if isinstance(item, str) and item in data.LOADERS)})


def files_of(name):
    """What must be below the data root for a set to be real: alternatives."""
    files = {
        "digits_five": [f"digits_five/{domain}.npz" for domain in domains.DIGITS_FIVE],
        "office_caltech_10": ["office_caltech_10/amazon"],
        "shakespeare_roles": ["shakespeare/plays_by_speech.json"],
    }.get(name, [])
    return [*files, f"{name}.npz", *data.PUBLIC[name].files] if name in data.PUBLIC else files


def made_up(name):
    """The parts of a data set that are not here."""
    root, files = data.data_root(), files_of(name)
    if name in data.PUBLIC:
        return [] if any((root / file).exists() for file in files) else [name]
    return [Path(file).stem for file in files if not (root / file).exists()]


def arrays_of(real, classes=10, side=32, channels=3, train=200, test=60):
    """Some images of a data set, or, where ``real`` is None, noise whose brightness tells the class."""
    if real is not None:
        some = data.some(real, min(train, len(real.y_train)), min(test, len(real.y_test)))
        x = {split: getattr(some, f"x_{split}").permute(0, 2, 3, 1).numpy() for split in ("train", "test")}
        return {f"x_{split}": x[split] for split in x} | {
            f"y_{split}": getattr(some, f"y_{split}").numpy() for split in x
        }
    rng, found = np.random.default_rng(0), {}
    for split, count in (("train", train), ("test", test)):
        y = np.arange(count) % classes
        noise = rng.integers(0, 100, (count, side, side, channels))
        found |= {f"x_{split}": (noise + (150 * y / classes)[:, None, None, None]).astype(np.uint8), f"y_{split}": y}
    return found


def make_small(name, root):
    """Put a small copy of a data set below ``root``."""
    here, absent = data.data_root(), made_up(name)
    if name in data.PUBLIC:
        classes = len(data.PUBLIC[name].classes)
        real = None if absent else data.load(name, download=False)
        side, channels = (28, 1) if name in ("mnist", "fashion_mnist") else (32, 3)
        train = max(200, 6 * classes)  # clients of one class need two images at least
        np.savez(root / f"{name}.npz", **arrays_of(real, classes, side, channels, train))
    elif name == "digits_five":
        (root / name).mkdir()
        for domain in domains.DIGITS_FIVE:
            real = None if domain in absent else data.read_npz(here / name / f"{domain}.npz")
            np.savez(root / name / f"{domain}.npz", **arrays_of(real, side=28, train=200, test=30))
    elif name == "office_caltech_10":
        for domain in domains.DOMAIN_SETS[name].domains:
            for c in range(10):
                kind = root / name / domain / f"class{c}"
                kind.mkdir(parents=True)
                for i in range(8):
                    Image.fromarray(np.full((40, 40, 3), 20 * c + i, np.uint8)).save(kind / f"{i}.jpg")
    elif name == "shakespeare_roles":
        (root / "shakespeare").mkdir()
        if not absent:
            shutil.copy(here / "shakespeare" / "plays_by_speech.json", root / "shakespeare")
        else:
            text = (ROOT / "fedlib" / "shakespeare_excerpt.txt").read_text(encoding="utf-8")
            speeches = [[f"role {i}", text[2000 * i : 2000 * (i + 1)]] for i in range(30)]
            (root / "shakespeare" / "plays_by_speech.json").write_text(
                json.dumps({"play": {"title": "play", "speeches": speeches}}), encoding="utf-8"
            )


# ---- where it runs


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Folder of an environment with Colab's packages and fedlib's wheel."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "below.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--ignore-installed"]
    result = subprocess.run([*install, *COLAB], capture_output=True, text=True, encoding="utf-8")
    if result.returncode:
        pytest.skip(f"Colab's packages cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
    source = folder / "source"  # building leaves files behind
    for name in ("fedlib", "book/_static", "book/params", "book/results"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "book/bars.yaml"):
        shutil.copy(ROOT / name, source / name)
    result = subprocess.run([*install, "--no-deps", str(source)], capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    shutil.rmtree(source)
    kernel = folder / "share" / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    spec = {
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
    }
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def test_the_environment_is_colabs_with_the_wheel(colab, tmp_path):
    asked = (
        "import ipywidgets, IPython, numpy, fedlib; "
        "print(ipywidgets.__version__, IPython.__version__, numpy.__version__, fedlib.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [colab / "bin" / "python", "-c", asked],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    *versions, where = done.stdout.split()
    assert versions == ["7.7.1", "7.34.0", "2.1.3"] and Path(where).is_relative_to(colab)


def test_the_wheel_brings_the_presets_the_bars_recorded_results_and_live_pieces(colab):
    (packaged,) = colab.glob("lib/python*/site-packages/fedlib/book")
    assert (packaged / "bars.yaml").read_bytes() == (BOOK / "bars.yaml").read_bytes()
    for folder, kind in (("params", "*.yaml"), ("results", "*.json")):
        ours = {file.name: file.read_bytes() for file in (BOOK / folder).glob(kind) if ".custom." not in file.name}
        assert {file.name: file.read_bytes() for file in (packaged / folder).iterdir()} == ours
    scripts = {file.name for file in (BOOK / "_static").glob("*.js")} | {"live.css"}
    assert {file.name for file in (packaged / "_static").iterdir()} == scripts


def turn(of):
    """Which of so many is tried in this run: another one after each commit, or each day where there is no git."""
    count = ["git", "rev-list", "--count", "HEAD"]
    try:
        done = subprocess.run(count, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
        return int(done.stdout) % of
    except (OSError, subprocess.CalledProcessError):
        return datetime.date.today().toordinal() % of


@functools.cache
def read(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def whole(file):
    """A preset with what its file leaves open: as in the quick one."""
    return read(BOOK / "params" / f"{file.name.split('.')[0]}.quick.yaml") | read(file)


def named(file):
    absent = [part for name in sets_of(read(file)) for part in made_up(name)]
    return file.stem + (f" with made-up {' '.join(absent)}" if absent else "")


def test_a_preset_is_made_small_in_length_and_size_only():
    chosen = (
        "sections",
        "methods",
        "depth",
        "rl_depths",
        "learning_rates",
        "weight_decays",
        "radii",
        "rates",
        "rl_sizes",
    )
    for file in PRESETS:
        values = whole(file)
        shrunk = small(values)
        assert shrunk.keys() == values.keys()
        for name, value in values.items():
            if name in chosen or isinstance(value, (str, bool)):
                assert shrunk[name] == value, f"{file.name}: {name}"
            if name.endswith(("rounds", "epochs")):
                assert shrunk[name] is None or shrunk[name] <= 2, f"{file.name}: {name}"
        if values.get("second"):
            assert shrunk["second"].keys() == values["second"].keys() and shrunk["second"]["rounds"] == 2


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=() if i == turn(len(PRESETS)) else pytest.mark.slow) for i, file in enumerate(PRESETS)],
    ids=map(named, PRESETS),
)
def test_preset_runs_as_on_colab_and_continues_where_it_stopped(file, colab, tmp_path, monkeypatch):
    import papermill

    stem, home, root = file.name.split(".")[0], tmp_path / "notebook", tmp_path / "data"
    home.mkdir()
    root.mkdir()
    values = whole(file)
    for name in sets_of(values):
        make_small(name, root)
    known = os.environ.get("JUPYTER_PATH", "")
    monkeypatch.setenv("JUPYTER_PATH", f"{colab / 'share' / 'jupyter'}{os.pathsep}{known}")
    monkeypatch.setenv("FEDLIB_DATA", str(root))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = shutil.copy(BOOK / f"{stem}.ipynb", home)
    given = small(values) | {"save": True, "checkpoints": "kept"}
    if given["device"] == "cuda" and not torch.cuda.is_available():
        on_cpu = {"device": "cpu", "precision": "float32"}  # a CPU has no tf32, and few have bf16
        given |= {name: value for name, value in on_cpu.items() if name in given}

    def run():
        papermill.execute_notebook(
            notebook, tmp_path / "out.ipynb", parameters=given, kernel_name="colab", cwd=home, progress_bar=False
        )
        result = json.loads((home / "results" / f"{stem}.custom.json").read_text(encoding="utf-8"))
        kept = {path: path.stat().st_mtime_ns for path in sorted((home / "kept").iterdir())}
        return {name: value for name, value in result.items() if name != "made"}, kept

    first, kept = run()
    (home / "results" / f"{stem}.custom.json").unlink()
    for path in list(kept)[::2]:  # as if it had been stopped halfway
        path.unlink()
    second, now = run()
    assert second == first
    assert now.keys() == kept.keys(), "other checkpoints the second time"
    assert all(now[path] == kept[path] for path in list(kept)[1::2]), "trained again what was there"

    cells = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    explorers = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert all("image/png" in output["data"] for output in explorers), "an explorer without its picture"
    page = "".join(str(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    assert "are called `custom`: the preset is" in page
    recorded = BOOK / "results" / f"{stem}.cpu.json"
    if recorded.exists():
        assert "`cpu`: not run" not in page, "the wheel's results are not found"
    assert not re.search(r"\b1 (seeds|epochs|rounds)\b", page)

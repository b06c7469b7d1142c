"""Every chapter runs from top to bottom where Colab's older packages are, on small settings.

The environment lays Colab's versions over the one that runs the tests: ipywidgets 7, IPython 7, an older NumPy, pandas
and matplotlib (Colab's backend-info of 19 August 2026). torch is the one at hand.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.colab
ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("[0-9][0-9]_*.ipynb"))
COLAB = [
    "ipywidgets==7.7.1",
    "ipython==7.34.0",
    "ipykernel==6.17.1",
    "numpy==2.1.3",
    "pandas==2.2.2",
    "matplotlib==3.10.0",
]
SMALL = {  # a few rounds of everything: what is tested is that it runs
    "01_federated_learning": {"rounds": 2, "lrs": [0.4], "seeds": [0], "more_steps": [1, 2]},
    "02_layer_normalization": {
        "rounds": 2,
        "learning_rates": [0.1, 0.3],
        "widen": False,
        "seeds": [0],
        "side_seeds": [0],
        "paper_lr": 0.1,
        "evaluate_every": 1,
    },
    "03_fedwon": {
        "rounds": 2,
        "learning_rates": [0.1, 0.2],
        "other_rounds": 1,
        "seeds": [0],
        "side_rounds": 2,
        "batch_images": 8,
        "batch_rounds": 1,
        "batch_rates": [0.1],
        "evaluate_every": 1,
    },
    "04_fednar": {
        "rounds": 2,
        "learning_rates": {"FedAvg": [0.1], "FedAdam": [0.1]},
        "weight_decays": [0.01, 0.1],
        "seeds": [0],
        "side_seeds": [0],
        "side_rates": [0.1],
        "radii": [1.0, 10.0],
        "skews": [1.0],
    },
    "05_layerwise_depth_dropout": {
        "phase_rounds": 1,
        "local_steps": 1,
        "rates": [0.1],
        "seeds": [0],
        "side_seeds": [0],
        "finetune_images": 40,
        "finetune_epochs": 1,
        "memory_batch": 2,
    },
    "06_ln_nonlinearity": {
        "seeds": [0],
        "construct_seeds": 1,
        "rl_images": 60,
        "rl_width": 16,
        "rl_sizes": [2, 4, 8],
        "rl_epochs": 2,
        "rl_rates": [0.1],
        "na_images": 60,
        "na_epochs": 2,
        "na_rates": [0.1],
        "vit_steps": 3,
        "fed_rounds": 2,
        "fed_rates": [0.1],
        "fed_seeds": [0],
        "widen": 0,
    },
}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Python of an environment with Colab's packages."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "below.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--ignore-installed", *COLAB]
    result = subprocess.run(install, capture_output=True, text=True, encoding="utf-8")
    if result.returncode:
        pytest.skip(f"Colab's packages cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
    kernel = folder / "share" / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}), encoding="utf-8"
    )
    return folder


def test_the_environment_is_colabs(colab):
    asked = "import ipywidgets, IPython, numpy; print(ipywidgets.__version__, IPython.__version__, numpy.__version__)"
    found = subprocess.run(
        [colab / "bin" / "python", "-c", asked], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert found.stdout.split() == ["7.7.1", "7.34.0", "2.1.3"]


def test_every_chapter_has_small_settings():
    assert set(SMALL) == {path.stem for path in CHAPTERS}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_as_on_colab(path, colab, tmp_path, monkeypatch):
    import papermill

    book = tmp_path / "book"  # alone, as on Colab: no presets, no results
    book.mkdir()
    notebook = shutil.copy(path, book)
    known = os.environ.get("JUPYTER_PATH", "")
    monkeypatch.setenv("JUPYTER_PATH", f"{colab / 'share' / 'jupyter'}{os.pathsep}{known}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    papermill.execute_notebook(
        notebook,
        tmp_path / "out.ipynb",
        parameters={"preset": "colab", **SMALL[path.stem]},
        kernel_name="colab",
        cwd=book,
        progress_bar=False,
    )
    outputs = [
        output
        for cell in json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", ())
    ]
    shown = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert all("image/png" in output["data"] for output in shown), "an explorer without its picture"

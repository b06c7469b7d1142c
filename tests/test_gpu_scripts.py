"""The scripts of benchmarks/gpu on a CPU: that they run, say where, and that all methods agree. No timings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CARD = {"device", "torch", "cudnn", "commit", "date", "command"}


def run(script, *told):
    """The script on a CPU; its output."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu" / script, "--device", "cpu", "--small", *map(str, told)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
def test_gpu_check(tmp_path):
    out = tmp_path / "gpu_check.json"
    run("gpu_check.py", "--seconds", 600, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert CARD <= result["card"].keys() and result["card"]["device"] == "cpu"
    lines = {name: section["lines"] for name, section in result["sections"].items()}
    assert {name: section["exit"] for name, section in result["sections"].items()} == dict.fromkeys(lines, 0)
    *cases, largest, _ = lines["correct"]
    assert len(cases) == 42 and all(line.startswith("ok ") for line in cases), cases  # 21 methods, two engines
    assert largest.startswith("largest difference ") and float(largest.split()[-1]) < 1e-12
    assert [line[:3] for line in lines["after"]] == ["ok ", "ok ", "ok ", "-- "]
    assert sum("rounds/s" in line for line in lines["speed"]) == 4 * 3 + 2  # two engines and the plain loop; sweeps


@pytest.mark.heavy
def test_ln_paper_stops_in_time_and_goes_on_from_its_checkpoints(tmp_path):
    """One turn of two rounds is always taken; none after it, where it would not fit."""
    options = ("--engine", "stacked", "--chunk", 4, "--rounds", 4, "--out", tmp_path)
    for rounds, seconds in ((2, 0.1), (4, 600)):
        said = run("ln_paper.py", "--seconds", seconds, *options)
        assert len(said.splitlines()) == 1 and f" s, {rounds} rounds: " in said
    result = json.loads((tmp_path / "ln_paper.json").read_text(encoding="utf-8"))
    told = {"engine": "stacked", "chunk": 4, "tf32": False, "benchmark": False, "rates": [0.01, 0.05, 0.1]}
    assert CARD <= result["card"].keys() and told.items() <= result["card"].items()
    assert result["rounds"] == 4 and result["curves"].keys() == {"none", "feature", "layer"}
    for curves in result["curves"].values():
        assert [curve["round"] for curve in curves] == [[2, 4]] * 3

"""The run card: where a recorded number comes from, so that anybody can repeat it.

A card names the commit, what the run was made of (digests of data, partitions, initial weights, preset and code), where
it ran, and the command that repeats it.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fedlib import fingerprint
from fedlib.data import Data
from fedlib.simulate import Run

ROOT = Path(__file__).resolve().parents[2]
# Raised when new numbers must not be compared with older ones; 2: clients draw their batches alone.
COMPARABILITY = 2


def made(
    chapter: str,
    preset: str,
    file: Path | None = None,
    runs: Iterable[Run] = (),
    data: Iterable[Data] = (),
    wall_seconds: float | None = None,
) -> dict[str, Any]:
    """The card of a run of a chapter.

    Args:
        chapter, preset: what was run.
        file: that says what the preset is.
        runs: all that were trained.
        data: all that they learned from.
        wall_seconds: from start to end.
    """
    configs = [run.config for run in runs]
    parts, start = (sorted({str(c[name]) for c in configs}) for name in ("parts", "start"))
    return {
        "date": datetime.date.today().isoformat(),
        "wall_seconds": wall_seconds,
        "hardware": hardware(),
        "versions": versions(),
        **commit(chapter),
        "digests": {
            "data": {one.name: fingerprint.of_data(one) for one in data},
            "partition": parts,
            "start": fingerprint.of_text(*start) if start else None,
            "preset": _of_preset(file),
            "code": code(),
        },
        "engine": sorted({c["engine"] for c in configs}),
        "precision": sorted({c["precision"] for c in configs}),
        "device": sorted({c["device"] for c in configs}),
        "comparability": COMPARABILITY,
        "command": f"papermill book/{chapter}.ipynb out.ipynb --cwd book -f book/params/{chapter}.{preset}.yaml "
        "-y 'save: true'",
    }


def commit(chapter: str, root: Path = ROOT) -> dict[str, Any]:
    """``commit``, and whether the tree is ``clean``: code, chapter, presets, bars as committed. None without git."""
    paths = ["fedlib", "book/params", "book/bars.yaml", f"book/{chapter}.ipynb"]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"commit": None, "clean": None}  # installed somewhere inside another repository
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *paths)
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "clean": None}
    return {"commit": head, "clean": not changed}


def unrepeatable(card: Mapping[str, Any]) -> str | None:
    """Why nobody could repeat the run of this card; None where anybody can."""
    if card["versions"].get("fedlib") == "not installed":
        return "fedlib is not installed, so that its version is unknown"
    if card.get("clean") is False:  # None: a notebook alone, whose code has a digest
        return "fedlib, the chapter, its presets or the bars have changes that are not committed"
    return None


def state(card: Mapping[str, Any], file: Path | None = None) -> str | None:
    """What has changed since a record was made: None, ``"older code"``, ``"stale"`` or ``"no run card"``.

    Stale, it must be made anew: its preset says something else now, or its numbers must not be compared with those of
    today. Older code may give the same numbers still.

    Args:
        card: what the record says of how it was made.
        file: that says what the preset is now.
    """
    if "digests" not in card:
        return "no run card"
    if card["comparability"] != COMPARABILITY or card["digests"]["preset"] != _of_preset(file):
        return "stale"
    return None if card["digests"]["code"] == code() else "older code"


@functools.cache
def code(root: Path = ROOT) -> str:
    """A digest of what a run imports: syntax trees, without docstrings, of fedlib's modules but those of the book."""
    files = sorted((root / "fedlib").glob("*.py"))
    return fingerprint.of_text(*(fingerprint.tree(file.read_text(encoding="utf-8")) for file in files))


def hardware() -> dict[str, Any]:
    """Processor, number of cores this process may use, and the GPU's name (None without one)."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M)
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")  # a run has imported it; reading results does not need it
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {"cpu": model, "cores": cores, "gpu": gpu}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "fedlib"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _of_preset(file: Path | None) -> str | None:
    """Of what the file says, whatever its comments and layout."""
    if file is None or not file.is_file():
        return None
    return fingerprint.of_text(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8")), sort_keys=True))


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()

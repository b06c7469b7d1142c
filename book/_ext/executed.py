"""What executed notebooks depend on, and which of them need not be executed again.

The build keeps executed notebooks in a cache (jupyter-cache), which looks at their cells alone. Beside it the build
writes on what they were executed; it drops the cache, and the tests do not trust it, as soon as that is something else.
"""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from fedlib import fingerprint

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "_build" / ".jupyter_cache"
STAMP = "executed_on.json"
# what computes, draws, or turns values into outputs
PACKAGES = (
    *("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "matplotlib", "seaborn", "pillow"),
    *("ipywidgets", "ipykernel", "ipython", "nbclient", "loky", "psutil", "tqdm", "pyyaml", "jupyter-cache"),
)


def state(root: Path = ROOT) -> dict[str, Any]:
    """Everything outside a notebook that it depends on: our code and files, the interpreter, installed packages."""
    return {
        "files": digest(root),
        "python": f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def digest(root: Path = ROOT) -> str:
    """Of fedlib's code, of the files in it, of the presets, and of the recorded runs and benchmarks that pages read.

    Quick results do not count: notebooks write them while they are executed.
    """
    found = hashlib.sha256()
    for path in sorted((root / "fedlib").rglob("*")):
        if path.suffix == ".py":
            _add(found, root, path, fingerprint.tree(path.read_text(encoding="utf-8")).encode())
        elif path.is_file() and "__pycache__" not in path.parts:
            _add(found, root, path, path.read_bytes())
    recorded = [path for path in sorted((root / "book" / "results").glob("*.json")) if not path.match("*.quick.json")]
    recorded += sorted((root / "benchmarks" / "results").glob("*.json"))
    for path in [*sorted((root / "book" / "params").glob("*.yaml")), *recorded]:
        _add(found, root, path, path.read_bytes())
    return found.hexdigest()


def write_stamp(cache: Path, now: dict[str, Any]) -> None:
    """Say beside a cache what its notebooks are executed on."""
    cache.mkdir(parents=True, exist_ok=True)
    (cache / STAMP).write_text(_written(now), encoding="utf-8")


def holds(cache: Path, root: Path = ROOT) -> bool:
    """Whether notebooks in a cache were executed on what is there now."""
    stamp = cache / STAMP
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _written(state(root))


def when(notebook: Path, cache: Path) -> datetime | None:
    """When the cells of a notebook were executed without an error, in UTC; None if a cache does not have them."""
    import nbformat
    from jupyter_cache import get_cache

    if not (cache / "global.db").exists():  # get_cache would make one
        return None
    try:
        return get_cache(cache).match_cache_notebook(nbformat.read(notebook, as_version=4)).created
    except KeyError:
        return None


def _written(now: dict[str, Any]) -> str:
    return json.dumps(now, indent=1)


def _add(found: Any, root: Path, path: Path, content: bytes) -> None:
    found.update(f"{path.relative_to(root).as_posix()} {len(content)} ".encode() + content)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""A federation on disk: what it was made of, and where it stands."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlib import fingerprint
from fedlib.files import replacing


@dataclass(frozen=True)
class Identity:
    """What a federation is made of.

    Attributes:
        same: what must be equal.
        alike: what must be equal but for rounding (:func:`fedlib.fingerprint.differ`).
        made: where it is computed, which may differ: a warning says so.
    """

    same: Mapping[str, Any]
    alike: Mapping[str, Tensor]
    made: Mapping[str, Any]


def place(path: Any) -> Path:
    """The file that was asked for; ``~`` is the home folder.

    Raises:
        ValueError: no path, or that of something else than a file.
    """
    if not isinstance(path, (str, os.PathLike)) or os.fspath(path) in ("", b"") or b"\0" in os.fsencode(path):
        raise ValueError(f"checkpoint must be the path of a file, got {path!r}")
    try:
        file = Path(path).expanduser()
    except RuntimeError as error:  # no home folder
        raise ValueError(f"checkpoint {str(path)!r} begins at a home folder, but {error}") from error
    if os.path.exists(file) and not file.is_file():
        kind = "folder" if file.is_dir() else "device or pipe"
        raise ValueError(f"checkpoint must be the path of a file, but {file} is a {kind}; name a file in one")
    return file


def try_out(path: Path) -> None:
    """Warn before the first round where a checkpoint cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part"):
            pass
    except (OSError, ValueError) as error:
        warnings.warn(
            f"checkpoint {path} cannot be written: {error}; training goes on without one, unless that changes",
            stacklevel=3,
        )


def write(path: Path, identity: Identity, state: Mapping) -> None:
    """Write beside the old checkpoint, then replace it: a crash or a full disk leaves the old one whole.

    A file that cannot be written is a warning: training goes on.
    """
    record = {"same": dict(identity.same), "alike": dict(identity.alike), "made": dict(identity.made)}
    try:
        with replacing(path) as part:
            torch.save({**record, "state": dict(state)}, part)
    except (OSError, RuntimeError, ValueError) as error:  # torch reports a failed write as a RuntimeError
        kept = "the one before it is kept" if os.path.exists(path) else "there is none yet"
        warnings.warn(
            f"could not write checkpoint {path} after round {state['t']}: {error}; {kept}, training goes on",
            stacklevel=2,
        )


def read(path: Path, identity: Identity, device: torch.device) -> dict:
    """The state in the file; nothing in it is executed.

    Raises:
        ValueError: the file cannot be read, or it was made of something else than ``identity`` says.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        same, alike, made, state = (saved[name] for name in ("same", "alike", "made", "state"))
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({error}): it is damaged, of an older fedlib, or something else; give "
            "this run another file, or delete that one to start anew"
        ) from error
    different = [
        f"{key}: {same.get(key)!r} there, {identity.same.get(key)!r} here"
        for key in sorted({*identity.same, *same})
        if same.get(key) != identity.same.get(key)
    ] + [
        f"{key} of the network differs" if key != "start" else "the networks start from other weights"
        for key, ours in identity.alike.items()
        if key not in alike or fingerprint.differ(alike[key].cpu(), ours)
    ]
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another configuration ({'; '.join(different)}); "
            "give this run another file, or delete that one to start anew"
        )
    elsewhere = [f"{key} {made.get(key)}" for key in identity.made if made.get(key) != identity.made[key]]
    if elsewhere:
        warnings.warn(
            f"checkpoint {path} was made with {', '.join(elsewhere)}: it goes on here, and its result is the same to "
            "rounding, not bit for bit",
            stacklevel=3,
        )
    return state

"""A federation on disk: what it was made of, and where it stands."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from fedlib.files import replacing


def write(path: Path, identity: Mapping, state: Mapping) -> None:
    """Write beside the old checkpoint, then replace it: a crash or a full disk leaves the old one whole.

    A file that cannot be written is a warning: training goes on.
    """
    try:
        with replacing(path) as part:
            torch.save({"identity": dict(identity), "state": dict(state)}, part)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        kept = "the one before it is kept" if path.exists() else "there is none yet"
        warnings.warn(
            f"could not write checkpoint {path} after round {state['t']}: {error}; {kept}, training goes on",
            stacklevel=2,
        )


def read(path: Path, identity: Mapping, device: torch.device) -> dict:
    """The state in the file; nothing in it is executed.

    Raises:
        ValueError: the file cannot be read, or it was made of something else than ``identity`` says.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        theirs, state = saved["identity"], saved["state"]
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error}); delete it to start anew") from error
    different = [
        f"{key}: {theirs.get(key)!r} there, {identity.get(key)!r} here"
        for key in sorted({*identity, *theirs})
        if theirs.get(key) != identity.get(key)
    ]
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another configuration ({'; '.join(different)}); "
            "give this run another file, or delete that one to start anew"
        )
    return state

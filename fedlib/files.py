"""Files that are there whole or not at all. Imports nothing of fedlib, so that every module can use it."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write to the path that this gives; at the end the file takes the place of `path`.

    An error on the way leaves what was at `path` before, and nothing beside it. The folder is made where it is not
    there. No two writers get the same path, also not on two machines that share a disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

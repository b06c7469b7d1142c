"""Files that are there whole or not at all. Imports nothing of fedlib, so that every module can use it."""

import hashlib
import os
import shutil
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm


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


def have(
    path: Path,
    urls: Sequence[str],
    md5: str | None = None,
    download: bool = True,
    check: Callable[[Path], object] = lambda path: None,
) -> None:
    """Have a whole file at `path`: the one that is there if it is right, else the first of `urls` that gives it.

    What does not arrive whole, or is not right, leaves no trace.

    Args:
        path: of the file.
        urls: tried one after the other.
        md5: that the file must have.
        download: whether to fetch it.
        check: raises ValueError for a file that is not right.

    Raises:
        FileNotFoundError: the file is missing or not right, and `download` is false.
        OSError: none of `urls` gave it; the message has each with its reason.
    """
    why = "is missing"
    if path.is_file():
        try:
            return _refuse_other(path, md5, check)
        except ValueError as error:
            why = str(error)
    if not download:
        raise FileNotFoundError(f"{path} {why}")
    failed = []
    for url in urls:
        try:
            with replacing(path) as part:
                _download(url, part, path.name)
                _refuse_other(part, md5, check)
            return
        except (OSError, HTTPException, ValueError) as error:
            failed.append(f"{url}: {error}")
    raise OSError(f"{path.name} did not come: {'; '.join(failed)}")


def _download(url: str, path: Path, name: str) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "fedlib"})  # some hosts turn Python's own name away
    with urllib.request.urlopen(request, timeout=60) as response, path.open("wb") as file:
        told = response.headers["Content-Length"]
        with tqdm.wrapattr(file, "write", int(told or 0) or None, desc=name, leave=False, miniters=1) as counted:
            shutil.copyfileobj(response, cast(IO[bytes], counted))
    came = path.stat().st_size  # a line that drops ends a response as its last byte does
    if told and came != int(told):
        raise OSError(f"broken off after {came:,} of {int(told):,} bytes")


def _refuse_other(path: Path, md5: str | None, check: Callable[[Path], object]) -> None:
    if md5 and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        with path.open("rb") as file:
            page = file.read(100).lstrip().startswith(b"<")
        raise ValueError(
            f"is not the file that is wanted: {path.stat().st_size:,} bytes"
            + (" of a web page, perhaps to log in" if page else "")
            + f", and its md5 is not {md5}"
        )
    check(path)

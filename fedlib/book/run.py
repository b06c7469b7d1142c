"""A chapter's experiments without its notebook: no IPython, no figures.

    python -m fedlib.book.run 02_layer_normalization --preset cpu               run and record what is missing
    python -m fedlib.book.run 02_layer_normalization --preset cpu --replay      which rows still give what they gave

It executes the cells of the notebook that are tagged ``parameters`` and ``experiment``, in order, with the preset's
values. Such cells may use ``fl``, ``np``, ``torch``, the parameters, ``record``, ``checkpoint``; each row is recorded
as soon as it is there (:mod:`fedlib.book.record`), so that a recording that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import linecache
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedlib as fl
from fedlib.book import claims
from fedlib.book.record import Checkpoints, Record, Replay, written
from fedlib.experiment import Recording


def execute(
    notebook: Path, values: dict[str, Any], record: Recording, checkpoints: Path | None = None
) -> dict[str, Any]:
    """The names that a chapter's experiments leave behind.

    Args:
        values: of the parameters that differ from those in the notebook.
        record: keeps and finds rows.
        checkpoints: a folder for those of rows that are being trained.

    Raises:
        ValueError: the notebook has no such cells, or a parameter does not exist.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged: dict[str, list[str]] = {"parameters": [], "experiment": []}
    for cell in cells:
        for tag in tagged.keys() & set(cell["metadata"].get("tags", ())):
            tagged[tag].append("".join(cell["source"]))
    for tag, sources in tagged.items():
        if not sources:
            raise ValueError(f"{notebook} has no cell that is tagged {tag!r}")
    checkpoint = Checkpoints(checkpoints, notebook.stem[:2], written([notebook.stem, values]))
    names: dict[str, Any] = {"fl": fl, "np": np, "torch": torch, "record": record, "checkpoint": checkpoint}
    names["__name__"] = notebook.stem
    for source in tagged["parameters"]:
        _run(source, f"{notebook}, parameters", names)
    unknown = next((name for name in values if name not in names), None)
    if unknown is not None:
        raise ValueError(f"parameter {unknown!r} does not exist in {notebook}")
    names |= values
    for number, source in enumerate(tagged["experiment"], 1):
        _run(source, f"{notebook}, experiment {number}", names)
    return names


def _run(source: str, name: str, names: dict[str, Any]) -> None:
    """Execute a cell, whose source can be read afterwards, as a notebook's can: rows are known by what it says."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), names)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", help="name of its notebook, without its ending")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--replay", action="store_true", help="record nothing; exit with 1 if a row is stale")
    parser.add_argument("--folder", type=Path, help="of the records; default book/results/rows")
    parser.add_argument("--checkpoints", type=Path, help="a folder, from which a row that was interrupted goes on")
    given = parser.parse_args(arguments)
    book = claims.book_folder()
    if book is None:
        raise SystemExit("there is no checkout of the book here")
    values = claims.preset(given.chapter, given.preset)
    record = Record(given.chapter, given.preset, given.folder)
    replay = Replay(record)
    execute(book / f"{given.chapter}.ipynb", values, replay if given.replay else record, given.checkpoints)
    lines = replay.found if given.replay else {name: "recorded" for name in record.content["rows"]}
    print("\n".join(f"{name}: {told}" for name, told in lines.items()))
    return int(any(told.startswith("stale") for told in lines.values()))


if __name__ == "__main__":
    sys.exit(main())

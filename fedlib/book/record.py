"""Records that grow row by row: a finished row is saved with its own card and is not run again.

A recording may be spread over days and lost machines: what is in the file is done. It lies in ``book/results/rows``,
beside the claims that :func:`fedlib.book.claims.save_results` writes at the end, and holds what a page needs of a row:
its rate, what it was chosen from, and of every run that is reported the history and each client's accuracies. Weights
are not kept.

    record = Record("02_layer_normalization", "cpu")
    found = fl.Plan(network, data, parts, ..., record=record).run(METHODS, "methods")
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
from torch import nn

from fedlib.book import card, claims
from fedlib.experiment import Row
from fedlib.files import replacing
from fedlib.simulate import Run, Weights

TOLERANCE = 1e-4  # of the first rounds, by which another machine or a change of code may move them
_KEPT = ("clients", "seed", "lr", "weight_decay", "clip", "engine", "precision", "device", "parts", "start", "rounds")


def written(value: Any) -> str:
    """A text that is the same for the same settings."""
    return json.dumps(value, sort_keys=True, default=str)


@dataclass(frozen=True)
class Checkpoints:
    """Names of a chapter's checkpoints; made by :func:`fedlib.book.chapter.checkpoint_names`."""

    folder: Path | None
    start: str
    settings: str

    def __call__(self, *words: Any, **more: Any) -> Path | None:
        """The file of one sweep; None where nothing is kept.

        Args:
            *words: what tells the sweep from the others of the chapter.
            **more: further settings of this sweep alone that decide its result.
        """
        if self.folder is None:
            return None
        digest = hashlib.sha256(f"{self.settings} {written([words, more])}".encode()).hexdigest()[:10]
        spoken = "-".join(re.sub(r"[^\w.+=-]+", "", str(word)) for word in words)
        return self.folder / f"{self.start}-{spoken}-{digest}.pt"


class Gone:
    """In the place of weights that a record does not keep."""

    def network(self, client: int | None = None) -> nn.Module:
        raise ValueError("this run was recorded, and a record keeps no weights: run it again for its network")


def _run(kept: Mapping[str, Any]) -> Run:
    history = pd.DataFrame(kept["history"]).astype(float).astype({"round": int})
    clients = pd.DataFrame(kept.get("clients", [])).astype(float)  # records from before 2026-11-29 have none
    clients.index = pd.Index(history["round"][: len(clients)], name="round")
    return Run(kept["config"], history, clients, kept["diverged"], kept["seconds"], cast(Weights, Gone()))


class Record:
    """The rows of one preset of a chapter on disk.

    Args:
        chapter, preset: what is recorded.
        folder: default ``results/rows`` in the book's folder.

    Raises:
        ValueError: a file that is no such record. Later, before a row is trained: a tree with changes that are not
            committed, from which nobody could repeat it.
    """

    def __init__(self, chapter: str, preset: str, folder: str | Path | None = None):
        self.chapter, self.preset = chapter, preset
        self.preset_file = claims.preset_file(chapter, preset)
        # Of the tree as it is before anything is trained; the digest of its code is kept from here on.
        self.tree = {"versions": card.versions(), **card.commit(chapter)}
        card.code()
        self.file = Path(folder or claims.book_folders("results")[0] / "rows") / f"{chapter}.{preset}.json"
        self.content: dict[str, Any] = {"name": chapter, "preset": preset, "rows": {}}
        if self.file.exists():
            try:
                self.content = json.loads(self.file.read_text(encoding="utf-8"))
                _ = self.content["rows"].items()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.file} is no record of rows: {error!r}") from error

    def get(
        self, table: str, row: str, description: Mapping[str, Any], again: Callable[[float], Sequence[float]]
    ) -> Row | None:
        """The row as it was recorded, if that was made of the same things; its runs have no weights."""
        kept = self.content["rows"].get(f"{table}: {row}")
        same = kept is not None and kept["of"] == claims.plain(description)
        if kept is not None and same and card.state(kept["made"], self.preset_file) != "stale":
            return self._row(row, kept)
        if self.preset != "custom" and (why := card.unrepeatable(self.tree)):
            raise ValueError(f"{self.chapter}.{self.preset}, {row}, would not be recorded: {why}")
        return None

    @property
    def seconds(self) -> float:
        """Of training, all rows together."""
        return sum(kept["made"]["wall_seconds"] for kept in self.content["rows"].values())

    @staticmethod
    def _row(row: str, kept: Mapping[str, Any]) -> Row:
        runs = [_run(one) for one in kept["runs"]]
        tried = {float(rate): float("nan") if score is None else score for rate, score in kept["tried"].items()}
        return Row(row, {}, kept["lr"], tried, runs, first=[*map(float.fromhex, kept["first"])])

    def put(self, table: str, row: Row, description: Mapping[str, Any]) -> None:
        """Keep a row, with its card, beside what others have written since.

        Raises:
            ValueError: another commit is checked out than when the record was opened.
        """
        tuning = [run for runs in row.tuning.values() for run in runs]
        seconds = sum({run.seconds for run in (*row.runs, *tuning)})  # the runs of a sweep share its time
        made = card.made(self.chapter, self.preset, self.preset_file, row.runs, wall_seconds=seconds)
        if made["commit"] != self.tree["commit"]:
            raise ValueError(f"{row.name} is not recorded: while it was trained {made['commit']} was checked out")
        made["clean"] = self.tree["clean"]
        if self.file.exists():
            self.content = json.loads(self.file.read_text(encoding="utf-8"))
        self.content["rows"][f"{table}: {row.name}"] = claims.plain(
            {
                "of": description,
                "lr": row.lr,
                "tried": {f"{rate:g}": score for rate, score in row.tried.items()},
                "first": [float.hex(number) for number in row.first],
                "runs": [
                    {
                        "config": {name: run.config[name] for name in _KEPT if name in run.config},
                        "history": run.history,
                        "clients": run.clients.to_numpy().tolist(),
                        "diverged": run.diverged,
                        "seconds": run.seconds,
                    }
                    for run in row.runs
                ],
                "made": made,
            }
        )
        with replacing(self.file) as part:
            part.write_text(claims.dump(self.content) + "\n", encoding="utf-8")


@dataclass
class Replay:
    """In the place of a record: runs the first rounds of its rows again, and says which still give what they gave.

    Attributes:
        record: which.
        found: ``"table: row"`` -> ``"same"`` (to the bit), ``"agrees"``, or ``"stale"`` and why, or ``"not recorded"``.
    """

    record: Record
    found: dict[str, str] = field(default_factory=dict)

    def get(
        self, table: str, row: str, description: Mapping[str, Any], again: Callable[[float], Sequence[float]]
    ) -> Row | None:
        name = f"{table}: {row}"
        kept = self.record.content["rows"].get(name)
        if kept is None:
            self.found[name] = "not recorded"
            return Row(row, {}, description["lr"][0], {}, ())  # it is not trained now either
        recorded, now = self.record._row(row, kept), claims.plain(description)
        differ = [key for key in now if kept["of"].get(key) != now[key]]
        if kept["made"]["comparability"] != card.COMPARABILITY:
            differ.append("comparability")
        told = f"stale: {', '.join(differ)} differ" if differ else _agree(recorded.first, again(recorded.lr))
        self.found[name] = told
        return recorded

    def put(self, table: str, row: Row, description: Mapping[str, Any]) -> None:
        """A row that is not recorded stays so."""


def _agree(before: Sequence[float], now: Sequence[float]) -> str:
    if [*before] == [*now]:
        return "same"
    off = max(abs(a - b) for a, b in zip(before, now, strict=True)) / max(map(abs, before))
    return "agrees" if off <= TOLERANCE else f"stale: the first rounds differ by {off:.0e}"

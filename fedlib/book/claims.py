"""What a paper promised: a claim, the paper's number, what was measured, the verdict.

A chapter states each claim once as a :class:`Claim`, asserts the verdict it reports, and writes everything a run found
to ``book/results/NAME.PRESET.json`` with :func:`save_results`. The scoreboard is made from those files alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fedlib.book import bars, card
from fedlib.book.bars import PRESETS, Bar, together
from fedlib.data import Data
from fedlib.files import replacing
from fedlib.simulate import Run

VERDICTS = ("holds", "holds in part", "undecided", "does not hold", "not run")
MARKS = {"holds": "✓", "holds in part": "≈", "undecided": "?", "does not hold": "✗", "not run": "–"}
_VOLATILE = ("made",)


@dataclass(frozen=True)
class Claim:
    """One promise of a paper and what became of it here.

    Args:
        id: unique in the book, lower-case letters, digits and hyphens; the chapter carries the MyST target
            ``(claim-ID)=`` above the cell that judges it, so that the scoreboard can link there.
        chapter: name of the chapter's file without its ending, for example ``"02_layer_normalization"``.
        statement: what is claimed, one sentence.
        paper: the paper's figure with its place, for example ``"87.2 % against 55.0 % (Table 1)"``.
        measured: what this run measured, as a number or as text with its unit.
        verdict: one of :data:`VERDICTS`.
        parts: of a claim about measured values, what :func:`measured` made of them; a claim without parts was judged by
            conditions that its chapter writes out.

    Raises:
        ValueError: unknown verdict, malformed id, empty text, or a non-finite ``measured`` that is said to hold.
    """

    id: str
    chapter: str
    statement: str
    paper: str
    measured: str | float
    verdict: str
    parts: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id):
            raise ValueError(f"id must be lower-case words joined by hyphens, got {self.id!r}")
        for field in ("chapter", "statement", "paper"):
            if not str(getattr(self, field)).strip():
                raise ValueError(f"{field} of claim {self.id!r} must not be empty")
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict of claim {self.id!r} must be one of {', '.join(VERDICTS)}, got {self.verdict!r}")
        if not isinstance(self.measured, str):
            object.__setattr__(self, "measured", float(self.measured))
            if not math.isfinite(self.measured) and self.verdict.startswith("holds"):
                raise ValueError(f"claim {self.id!r} cannot be said to hold: measured is {self.measured}")

    @property
    def anchor(self) -> str:
        """Target of the cell that judges the claim."""
        return f"claim-{self.id}"


def measured(
    id: str,
    chapter: str,
    statement: str,
    paper: str,
    told: str,
    values: Any,
    *,
    known: Mapping[str, Bar] | None = None,
    preset: str | None = None,
) -> Claim:
    """A claim about measured values, with the verdict that follows from them and from its bars.

    Args:
        id, chapter, statement, paper: see :class:`Claim`.
        told: what was measured, in words.
        values: one number a seed, differences paired by seed; or part -> those; or one number, of an exact claim. None
            or nothing: the claim was not run.
        known: id -> bar; default ``book/bars.yaml``.
        preset: whose runs these are: rounding, where it was measured, can turn a verdict into "undecided"; see
            :meth:`fedlib.book.bars.Bar.verdict`.

    Raises:
        ValueError: a claim without a bar, or of other parts than its bars.
    """
    known = the_bars() if known is None else known
    names = [name for name in known if name.split("/")[0] == id]
    if not names:
        raise ValueError(f"claim {id!r} has no bar in bars.yaml: commit one, with its reason, before the run it judges")
    if _nothing(values):
        return Claim(id, chapter, statement, paper, told, "not run")
    given = {f"{id}/{part}": v for part, v in values.items()} if isinstance(values, Mapping) else {id: values}
    if {*given} != {*names}:
        raise ValueError(f"claim {id!r} has bars for {', '.join(names)}, but values for {', '.join(given)}")
    parts = [_judged(known[name], given[name], preset) for name in names]
    return Claim(id, chapter, statement, paper, told, together([part["verdict"] for part in parts]), tuple(parts))


def _nothing(values: Any) -> bool:
    return values is None or not (values if isinstance(values, Mapping) else np.size(values))


def _judged(bar: Bar, values: Any, preset: str | None) -> dict[str, Any]:
    """What was measured of one part of a claim, its bar, and the verdict that follows."""
    rounding = bar.rounding.get(preset or "", 0.0)
    told = {**asdict(bar), "rounding": rounding}
    if _nothing(values):
        return {**told, "values": [], "interval": [None, None], "verdict": "not run"}
    found, verdict = bar.judge(values, rounding)
    numbers = np.atleast_1d(np.asarray(values, dtype=float)).tolist()
    return {**told, "values": numbers, "interval": [*found], "verdict": verdict}


def the_bars() -> dict[str, Bar]:
    """The bars of all claims: ``book/bars.yaml``, or the copy that came with fedlib."""
    files = [folder.parent / "bars.yaml" for folder in book_folders("params")]
    file = next((file for file in files if file.is_file()), None)
    return {} if file is None else bars.load(file)


def mean_std(values: Iterable[float], unit: str = "%", digits: int = 1) -> str:
    """Mean and sample standard deviation over seeds as text: ``"81.2 ± 0.4 %"``; one value stands without spread."""
    values = np.asarray(list(values), dtype=float)
    if values.size == 0:
        raise ValueError("values must not be empty")
    spread = f" ± {values.std(ddof=1):.{digits}f}" if values.size > 1 else ""
    return f"{values.mean():.{digits}f}{spread} {unit}".rstrip()


def beside(paper: Mapping[Any, float | None], ours: Mapping[Any, Any]) -> pd.DataFrame:
    """The paper's numbers beside ours, one row for every key of either.

    Args:
        paper: row name to the paper's number; ``None`` where the paper has none.
        ours: row name to a number or to one number a seed; a missing row was not run.

    Returns:
        DataFrame indexed by row name, columns paper, ours (mean), spread (sample std over seeds), seeds, difference.
    """
    rows = {}
    for key in dict.fromkeys([*paper, *ours]):
        theirs = paper.get(key)
        values = np.atleast_1d(np.asarray(ours.get(key, []), dtype=float))
        mean = values.mean() if values.size else math.nan
        theirs = math.nan if theirs is None else float(theirs)
        rows[key] = {
            "paper": theirs,
            "ours": mean,
            "spread": values.std(ddof=1) if values.size > 1 else math.nan,
            "seeds": values.size,
            "difference": mean - theirs,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# ---------------------------------------------------------------- results on disk

_PACKAGED = Path(__file__).parent  # the wheel has copies of the book's params/ and results/ here


def book_folder() -> Path | None:
    """The folder ``book`` of a checkout, known by its presets; None where there is none: a notebook alone.

    Looked for where we are and above, since papermill starts notebooks where it was called, then beside ``fedlib``.
    """
    here = Path.cwd()
    above = [place for folder in (here, *here.parents) for place in (folder, folder / "book")]
    places = [*above, Path(__file__).resolve().parents[2] / "book"]
    return next((place for place in places if any((place / "params").glob("*.quick.yaml"))), None)


def book_folders(name: str) -> list[Path]:
    """Where to look for ``params`` or ``results``: in the book's folder (here, without one), then in fedlib's copy."""
    return [(book_folder() or Path.cwd()) / name, _PACKAGED / name]


def preset_file(chapter: str, preset: str, folders: Sequence[Path] | None = None) -> Path | None:
    """The file that says what a preset of a chapter is; None without one.

    Args:
        folders: where to look; default as :func:`book_folders` says.
    """
    places = book_folders("params") if folders is None else folders
    files = (folder / f"{chapter}.{preset}.yaml" for folder in places)
    return next((file for file in files if file.is_file()), None)


def preset_values(chapter: str, preset: str, folders: Sequence[Path] | None = None) -> dict[str, Any] | None:
    """What the file of a preset says; None without one."""
    file = preset_file(chapter, preset, folders)
    return None if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))


def preset(chapter: str, name: str) -> dict[str, Any]:
    """A preset's parameters, for a notebook without papermill: ``globals().update(preset(...))`` in a cell of its own.

    Args:
        chapter: name of the notebook without its ending.
        name: for example ``"colab"``.

    Raises:
        ValueError: there is no such preset.
    """
    own, quick = preset_values(chapter, name), preset_values(chapter, "quick")
    if own is None or quick is None:
        known = sorted({file.stem for folder in book_folders("params") for file in folder.glob("*.yaml")})
        raise ValueError(f"there must be a file of the preset, one of {', '.join(known)}; got {f'{chapter}.{name}'!r}")
    return {**quick, **own}


def plain(value: Any) -> Any:
    """The value in JSON's own types; floats to 6 significant digits, non-finite ones as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, pd.DataFrame):
        return {str(name): plain(column.tolist()) for name, column in value.items()}
    if hasattr(value, "history"):  # a Run
        return plain(value.history)
    if isinstance(value, (list, tuple, set, range)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and tensors, scalars among them
        return plain(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return str(value)


def dump(value: Any, indent: int = 0) -> str:
    """JSON with one line for each list of plain values, so that a diff of two runs can be read."""
    pad = "  " * (indent + 1)
    nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(i, (dict, list)) for i in value))
    if not nested or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, dict):
        names = [json.dumps(key, ensure_ascii=False) for key in value]
        lines = [f"{pad}{name}: {dump(item, indent + 1)}" for name, item in zip(names, value.values(), strict=True)]
        opening, closing = "{", "}"
    else:
        lines = [pad + dump(item, indent + 1) for item in value]
        opening, closing = "[", "]"
    return opening + "\n" + ",\n".join(lines) + "\n" + "  " * indent + closing


def save_results(
    name: str,
    preset: str,
    *,
    config: Mapping[str, Any],
    claims: Iterable[Claim] = (),
    tables: Mapping[str, Any] | None = None,
    curves: Mapping[str, Any] | None = None,
    seeds: Iterable[int] = (),
    wall_time: float | None = None,
    runs: Iterable[Run] = (),
    data: Iterable[Data] = (),
    folder: str | Path | None = None,
) -> Path:
    """Write what a chapter found to ``FOLDER/NAME.PRESET.json``.

    A file that already says the same, hardware, versions, date and wall time aside, is left as it is, so that building
    the book on the machine that made it changes nothing.

    Args:
        name: chapter, for example ``"02_layer_normalization"``.
        preset: ``quick``, ``cpu``, ``colab``, ``paper``, or ``custom`` for hand-picked settings (git ignores those).
        config: the settings of the run; ``data`` and ``rounds`` are shown under tables.
        claims: the chapter's claims with their verdicts.
        tables: name to DataFrame (or any mapping of columns).
        curves: name to DataFrame, Run or mapping of columns, or to a list of those, one a seed.
        seeds: the seeds used.
        wall_time: seconds from start to end.
        runs, data: all that were trained and what they learned from, for the run card (:mod:`fedlib.book.card`).
        folder: where results live, made if missing; default ``results`` in the book's folder, wherever the notebook was
            started, or in the working directory for a notebook alone.

    Returns:
        Path of the file.

    Raises:
        ValueError: unknown preset, two claims with the same id, or a preset that nobody could repeat: from a tree with
            changes that are not committed, or with fedlib "not installed". (A quick run is then not recorded.)
    """
    if preset not in (*PRESETS, "custom"):
        raise ValueError(f"preset must be one of {', '.join(PRESETS)} or custom, got {preset!r}")
    claims = list(claims)
    ids = [claim.id for claim in claims]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claim ids must be unique, got {ids}")
    content = plain(
        {
            "name": name,
            "preset": preset,
            "seeds": list(seeds),
            "config": config,
            "claims": [asdict(claim) for claim in claims],
            "tables": tables or {},
            "curves": curves or {},
        }
    )
    content["made"] = plain(card.made(name, preset, preset_file(name, preset), runs, data, wall_time))
    path = Path(folder or book_folders("results")[0]) / f"{name}.{preset}.json"
    if path.exists() and _same(path, content):
        return path
    if preset != "custom" and folder is None and (why := card.unrepeatable(content["made"])):
        if preset == "quick":
            return path
        raise ValueError(f"{name}.{preset} is not recorded: {why}; record from a second clone, and go on editing here")
    with replacing(path) as part:
        part.write_text(dump(content) + "\n", encoding="utf-8")
    return path


def _same(path: Path, content: dict[str, Any]) -> bool:
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut short or hand-edited: write it anew
        return False
    stable = [key for key in content if key not in _VOLATILE]
    return isinstance(old, dict) and all(key in old and old[key] == content[key] for key in stable)


def load_results(folder: str | Path | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """All results in a folder: ``results[name][preset]`` is what :func:`save_results` wrote; ``{}`` without a folder.

    Args:
        folder: default the book's results, wherever we were started; a notebook alone sees those that came with fedlib,
            and its own before them.

    Raises:
        ValueError: a file that is not such a result, by its path.
    """
    if folder is None:
        return _recorded()
    return _read_results(Path(folder).glob("*.json"))


def _read_results(paths: Iterable[Path]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for content in map(read_result, sorted(paths)):
        found.setdefault(content["name"], {})[content["preset"]] = content
    return found


def read_result(path: Path) -> dict[str, Any]:
    """One file of results.

    Raises:
        ValueError: it is not what :func:`save_results` writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = content["name"], content["preset"], [Claim(**claim) for claim in content["claims"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result written by save_results: {error!r}") from error
    return content


def _recorded() -> dict[str, dict[str, dict[str, Any]]]:
    beside, packaged = book_folders("results")
    if book_folder() is not None and beside.is_dir():  # not mixed with an older or newer fedlib's results
        return load_results(beside)
    # where a notebook lies alone, a folder of this name may hold anything
    own, known = _read_results(beside.glob("[0-9][0-9]_*.*.json")), load_results(packaged)
    return {name: known.get(name, {}) | own.get(name, {}) for name in known | own}


def curves_frame(result: Mapping[str, Any]) -> pd.DataFrame:
    """Every curve of a result, one line an evaluation: columns curve, run (0, 1, ..., as its seeds), and its own.

    Args:
        result: one entry of :func:`load_results`.
    """
    frames = [pd.DataFrame({"curve": [], "run": []})]
    for name, runs in result["curves"].items():
        for number, run in enumerate(runs if isinstance(runs, list) else [runs]):
            frames.append(pd.DataFrame({"curve": name, "run": number, **run}))
    return pd.concat(frames, ignore_index=True)


def tables_frame(result: Mapping[str, Any]) -> pd.DataFrame:
    """Every number of the tables and claims of a result: columns where (names joined by " / "), value."""

    def lines(where: str, value: Any) -> Iterable[tuple[str, Any]]:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
        if pairs is None:
            yield where, value
        else:
            for key, item in pairs:
                yield from lines(f"{where} / {key}", item)

    judged = {one["id"]: {key: one.get(key) for key in ("verdict", "measured", "parts")} for one in result["claims"]}
    given = {"tables": result["tables"], "claims": judged}
    return pd.DataFrame(
        [line for name, value in given.items() for line in lines(name, value)], columns=["where", "value"]
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def provenance(result: Mapping[str, Any]) -> str:
    """One line that says where a table's numbers come from.

    Args:
        result: one entry of :func:`load_results`.

    Returns:
        For example ``"cifar10, 3 seeds, 2,000 rounds, NVIDIA H200, torch 2.11.0, 2026-11-21, 14 min"``; what has
        changed since then comes last (:func:`fedlib.book.card.state`).
    """
    config, made = result["config"], result["made"]
    rounds = config.get("rounds")
    seeds = len(result["seeds"])
    machine = made["hardware"]["gpu"] or f"{made['hardware']['cpu']}, {made['hardware']['cores']} cores"
    parts = [
        str(config["data"]) if config.get("data") else None,
        f"{seeds} seed{'s' * (seeds != 1)}" if seeds else None,
        f"{rounds:,} rounds" if isinstance(rounds, int) else None,
        machine,
        f"torch {made['versions']['torch']}",
        made["date"],
        _duration(made["wall_seconds"]) if made["wall_seconds"] is not None else None,
        card.state(made, preset_file(result["name"], result["preset"])),
    ]
    return ", ".join(part for part in parts if part)


def typeset(text: str) -> str:
    """Text for a page: true minus signs, powers of ten, and numbers that stay with their unit at the end of a line.

    Args:
        text: as Python prints it, for example ``"3e-16 after 20 rounds, -6.8 %"``.

    Returns:
        For example ``"3·10⁻¹⁶ after 20 rounds, −6.8 %"``, with no-break spaces before ``%`` and around ``±``.
    """

    def power(found: re.Match) -> str:
        exponent = str(int(found[2])).translate(_RAISED)
        return found[1] if float(found[1]) == 0 or int(found[2]) == 0 else f"{found[1]}·10{exponent}"

    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]\d+)\b", power, text)
    text = re.sub(r"(?<![\w.)\]–-])-(?=\d)", "−", text)
    return re.sub(r" (?=%|±)|(?<=±) (?=\d)| (?== [−\d])|(?<= =) (?=[−\d])", "\u00a0", text)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# ---------------------------------------------------------------- the scoreboard


def scoreboard(folder: str | Path | None = None) -> pd.DataFrame:
    """Every claim with what each preset measured.

    Args:
        folder: where results live; default as for :func:`load_results`.

    Returns:
        DataFrame indexed by claim id; columns chapter, statement, paper_says, then for each preset its measurement
        (``quick``, ``cpu``, ``colab``, ``paper``; text, empty where not run) and its verdict
        (``quick_verdict``, ...), then ``largest``, the largest preset that was run (empty for none), and ``verdict``,
        the verdict it gave.
    """
    rows: dict[str, dict[str, str]] = {}
    for results in load_results(folder).values():
        for preset in PRESETS:  # from small to large, so that the largest has the last word
            for claim in results.get(preset, {}).get("claims", []):
                row = rows.setdefault(claim["id"], {"verdict": "not run"})
                row.update(chapter=claim["chapter"], statement=claim["statement"], paper_says=claim["paper"])
                if claim["verdict"] != "not run":
                    row.update(
                        {
                            preset: _measured(claim["measured"]),
                            f"{preset}_verdict": claim["verdict"],
                            "largest": preset,
                            "verdict": claim["verdict"],
                        }
                    )
    columns = [
        "chapter",
        "statement",
        "paper_says",
        *PRESETS,
        *(f"{preset}_verdict" for preset in PRESETS),
        "largest",
        "verdict",
    ]
    board = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    for column in columns:
        board[column] = board[column].fillna("not run" if "verdict" in column else "")
    return board.sort_values("chapter", kind="stable")


def _measured(value: str | float | None) -> str:
    return "not finite" if value is None else value if isinstance(value, str) else f"{value:.4g}"


VERBS = {
    "holds": ("holds", "hold"),
    "holds in part": ("holds in part", "hold in part"),
    "undecided": ("is undecided", "are undecided"),
    "does not hold": ("does not hold", "do not hold"),
    "not run": ("was not run", "were not run"),
}


def summary(folder: str | Path | None = None) -> str:
    """The scoreboard in one sentence: ``"Of 9 claims, 7 hold, 1 holds in part, 1 was not run."``"""
    verdicts = scoreboard(folder)["verdict"].tolist()
    if not verdicts:
        return "No claim has been put to the test yet."
    found = {kind: verdicts.count(kind) for kind in VERDICTS if kind in verdicts}
    parts = [f"{count} {VERBS[kind][count > 1]}" for kind, count in found.items()]
    return f"Of {len(verdicts)} claim{'s' * (len(verdicts) > 1)}, {', '.join(parts)}."

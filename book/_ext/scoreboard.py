"""The scoreboard: every claim as a card, its intervals drawn against bars that a reader can move.

Python writes the state that is recorded; ``_static/scoreboard.js`` moves the bars and judges by the same rule as
:meth:`fedlib.book.bars.Bar.verdict`. Without scripts the page shows what is recorded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fedlib.book import claims
from fedlib.book.bars import Bar, centre

FAILURES_FIRST = ("does not hold", "undecided", "holds in part", "holds", "not run")
# For which bars a verdict is what it is: {near} is where the interval's end that must pass the bar would just pass it,
# {far} where the other end would.
STANDS = {
    "at least": {
        "holds": "for every bar up to {near}",
        "holds in part": "for every bar above {near}",
        "undecided": "for bars from {near} to {far}",
        "does not hold": "for every bar above {far}",
    },
    "at most": {
        "holds": "for every bar from {near} up",
        "holds in part": "for every bar below {near}",
        "undecided": "for bars from {far} to {near}",
        "does not hold": "for every bar below {far}",
    },
}
WORDS = {"verdicts": claims.VERDICTS, "marks": claims.MARKS, "verbs": claims.VERBS, "stands": STANDS}
BAR = [field.name for field in fields(Bar) if field.name != "rounding"]  # a record has that of its own preset
STEPS = 60  # at least so many from one end of a slider to the other


def cards(given: list[dict[str, Any]], summary: str) -> str:
    """The whole scoreboard in HTML; each claim links to the cell that judges it.

    Args:
        given: what :func:`chapters` found.
        summary: all of it in one sentence.
    """
    return _render("cards", given, summary, json.dumps(WORDS, ensure_ascii=False))


def brief(given: list[dict[str, Any]]) -> str:
    """A table for each chapter, to unfold: what the largest preset measured."""
    return _render("brief", given)


def chapters(folder: Path, titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the template shows, chapter by chapter, failures first.

    Args:
        folder: where results live.
        titles: chapter's name to its title.
    """
    board, recorded = claims.scoreboard(folder), claims.load_results(folder)
    found = []
    for name, rows in board.groupby("chapter"):
        given = [_claim(str(id), row, recorded[str(name)]) for id, row in rows.iterrows()]
        verdicts = [claim["verdict"] for claim in given]
        found.append(
            {
                "title": titles.get(str(name), str(name)),
                "page": f"{name}.html",
                "claims": sorted(given, key=lambda claim: FAILURES_FIRST.index(claim["verdict"])),
                "counts": {kind: verdicts.count(kind) for kind in claims.VERDICTS if kind in verdicts},
            }
        )
    return found


def _claim(id: str, row: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    presets, lines = [], {}
    for preset in claims.PRESETS:
        judged = next((one for one in recorded.get(preset, {}).get("claims", []) if one["id"] == id), None)
        if judged is None or judged["verdict"] == "not run":
            continue
        told = {"measured": row[preset], "verdict": judged["verdict"], "parts": bool(judged.get("parts"))}
        presets.append({"name": preset, **told})
        for part in judged.get("parts", []):
            lines.setdefault(part["id"], []).append((preset, part))
    said = {name: row[name] for name in ("statement", "paper_says", "verdict", "largest")}
    return {"id": id, **said, "presets": presets, "parts": [_part(name, lines[name]) for name in lines]}


def _part(id: str, given: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One bar, and the interval of every preset beside it; the bar is that of the largest of them."""
    last = given[-1][1]
    bar = Bar(**{name: last[name] for name in BAR if name in last})
    lines = [_line(preset, part) for preset, part in given]
    shown = [end for line in lines if not line["why"] for end in (line["from"], line["to"])]
    shown += [bar.bar, 0] if bar.weaker is None else [bar.bar, 0, bar.weaker]
    # an identity holds to rounding or it does not: there is nothing to argue about
    argued = not bar.exact and any(not line["why"] for line in lines)
    return {
        "id": re.sub(r"\W+", "-", id),  # "+" is no part of a name to a style sheet
        "name": id.partition("/")[2],
        "bar": bar,
        "lines": lines,
        "axis": Axis(shown, bar.bar) if argued else None,
    }


def _line(preset: str, part: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (math.nan if end is None else float(end) for end in part["interval"])
    rounding = part.get("rounding", 0.0)
    # the bars at which the verdict changes: an end that lies nearer to a bar than rounding counts as inside
    ends = low - rounding, high + rounding
    near, far = ends if part["sense"] == "at least" else ends[::-1]
    known = math.isfinite(low) and math.isfinite(high)
    values = np.array(part["values"], dtype=float)
    return {
        "preset": preset,
        "low": low,
        "high": high,
        "near": number(near, 4),
        "far": number(far, 4),
        "from": ends[0],
        "to": ends[1],
        "mean": centre(values),
        "seeds": 0 if part["exact"] else values.shape[-1],
        "why": "" if known else _why(values),
        "verdict": part["verdict"],
        "rounding": rounding,
        "stands": _stands(part, near, far) if known else "",
    }


def _why(values: np.ndarray) -> str:
    """Why there is no interval."""
    if np.isnan(values).any():
        return "no interval: not every seed has a number"
    return (
        "no interval: one seed decides nothing" if values.shape[-1] == 1 else "no interval: too small a gain to share"
    )


def _stands(part: Mapping[str, Any], near: float, far: float) -> str:
    """For which bars a verdict would be the same."""
    key, weaker = part["verdict"], part.get("weaker")
    end = part["interval"][0 if part["sense"] == "at least" else 1]
    if key == "undecided" and weaker is not None and abs(end - weaker) < part.get("rounding", 0.0):
        key = "holds in part"  # as long, but rounding could take it away
    return STANDS[part["sense"]][key].format(near=number(near, 4), far=number(far, 4))


class Axis:
    """From where to where a slider goes, in steps on one of which the bar lies.

    Args:
        shown: all that must lie on it.
        bar: where the slider starts.
    """

    def __init__(self, shown: Iterable[float], bar: float):
        low, high = min(shown := [*shown]), max(shown)
        room = (high - low) * 0.12 or 1.0
        self.step = _step((high - low + 2 * room) / STEPS, bar)
        self.low = _tidy(math.floor((low - room) / self.step) * self.step)
        self.high = _tidy(math.ceil((high + room) / self.step) * self.step)

    def at(self, value: float) -> str:
        """Where a value lies, in per cent of the axis."""
        return f"{100 * (value - self.low) / (self.high - self.low):.3f}"


def _tidy(value: float) -> float:
    """The number that was meant: -3.4 for -3.4000000000000004."""
    return float(f"{value:.12g}")


def _step(wanted: float, bar: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is no larger than ``wanted`` and has the bar as a multiple."""
    power = math.floor(math.log10(wanted))
    for exponent in range(power, power - 6, -1):
        for digit in (5, 2, 1):
            step = float(f"{digit}e{exponent}")
            if step <= wanted and math.isclose(bar / step, round(bar / step), abs_tol=1e-9):
                return step
    return wanted


def number(value: float, digits: int = 3) -> str:
    """A number for a page, with a true minus."""
    return claims.typeset(f"{value:.{digits}g}")


def _render(kind: str, *given: Any) -> str:
    """HTML of one of the template's two forms, in lines that Markdown takes for one block."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(typeset=claims.typeset, number=number)
    environment.globals.update(verbs=claims.VERBS, marks=claims.MARKS)
    text = getattr(environment.get_template("scoreboard.html.jinja").module, kind)(*given)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())

"""Pieces that live on the page: they train, fold and walk in the reader's browser, without a kernel.

Their scripts lie in ``book/_static``. A cell shows a piece with a still inside, for readers whose browser runs no
scripts, and brings the scripts along, so that JupyterLab and Colab show it, too. On the site, which has the scripts
once for all pages, the build takes them out of the page again (``book/_ext/fedbook.py``).
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedlib import data
from fedlib.book.bars import interval
from fedlib.book.claims import book_folders
from fedlib.checks import choice, is_number

SHADES = 16  # of a pixel of the digits, above black
# In the order in which they are loaded; digits.js is made, the others are files.
SCRIPTS = {
    "clients": (
        "digits.js", "federation.js", "host.js", "drawing.js", "controls.js", "choices.js", "sweep.js", "sketch.js",
        "pieces.js", "clients.js",
    ),
    "points": ("federation.js", "drawing.js", "controls.js", "folding.js", "pieces.js", "points.js"),
    "bowls": ("drawing.js", "controls.js", "pieces.js", "bowls.js"),
    "ask": ("ask.js",),
}  # fmt: skip
# Settings that a piece needs, and those that it takes besides.
NEEDS = {"bowls": {"H", "minima", "start", "rounds", "sides", "settings", "xlim", "ylim"}}
TAKES: dict[str, dict[str, Sequence]] = {  # with their values, as choices.js has them
    "clients": {
        "norm": ("none", "layer", "feature", "batch", "ln-g"),
        "method": ("FedAvg", "FedProx", "SCAFFOLD", "FedAvgM", "FedNAR"),
        "lr": ("0.003", "0.01", "0.03", "0.1", "0.3", "1"),
        "steps": range(1, 21),
        "cohort": range(1, 11),
        "seed": range(1000),
        "split": ("shuffled", "two", "one"),
    }
}


@dataclass(frozen=True)
class Piece:
    """A live piece as a cell shows it.

    Attributes:
        name: one of `SCRIPTS`.
        body: HTML, the piece with its still.
    """

    name: str
    body: str = field(repr=False)

    def _repr_html_(self) -> str:
        """The piece and all that it needs; the build takes out what stands between the two marks."""
        folder = static()
        if folder is None:
            return f"{self.body}<p>The scripts of this piece are not here; it lives on the book's page.</p>"
        # In a function of its own, since a cell that is run again brings every script again.
        scripts = "\n".join(source(name) for name in SCRIPTS[self.name])
        style = (folder / "live.css").read_text(encoding="utf-8")
        return f"{self.body}<!--live--><style>{style}</style><script>(() => {{{scripts}}})();</script><!--/live-->"


def live(name: str, alt: str, still: Any = None, **settings: Any) -> Piece:
    """A live piece; the last line of a cell shows it.

    Args:
        name: ``"clients"`` (ten clients train), ``"points"`` (layer normalisation folds points) or ``"bowls"`` (two
            clients with a quadratic loss each).
        alt: what it shows, for those who cannot see it.
        still: a matplotlib figure that stands there where no scripts run; default the words of ``alt``.
        **settings: what it starts with. Of the clients any of ``norm``, ``method``, ``lr`` (a text), ``steps``,
            ``cohort``, ``seed``, ``split`` (``"shuffled"``, ``"two"`` or ``"one"`` class each). Of the bowls all of
            ``H`` (2, 2, 2), each client's Hessian, ``minima`` (2, 2), ``start`` (2,), ``rounds``, ``sides``
            (``"base"``, decay outside the clip, and ``"NAR"``, inside), ``settings`` (those of ``steps``, ``lr``,
            ``decay`` and ``ball`` that get a control), and ``xlim`` and ``ylim``, the part of the plane that is seen.

    Raises:
        ValueError: an unknown piece, settings that it does not take or that are missing, or an empty ``alt``.
    """
    if name not in SCRIPTS or name == "ask":
        raise ValueError(f"live piece {name!r} does not exist; there are {sorted(SCRIPTS.keys() - {'ask'})}")
    needed = NEEDS.get(name, set())
    accepted = TAKES.get(name, {})
    takes = needed | accepted.keys()
    if not needed <= settings.keys() <= takes:
        raise ValueError(
            f"live piece {name!r} takes {sorted(takes)} and needs {sorted(needed)}; got {sorted(settings)}"
        )
    for key in accepted.keys() & settings.keys():
        values, given = accepted[key], settings[key]
        if not isinstance(values, range):
            choice(key, given, values)
        elif isinstance(given, bool) or given not in values:
            raise ValueError(f"{key} must be a whole number from {values[0]} to {values[-1]}, got {given!r}")
    if not alt.strip():
        raise ValueError("alt must say what the piece shows, for those who cannot see it")
    inside = f"<p>{html.escape(alt)}</p>" if still is None else _picture(still, alt)
    kept = html.escape(json.dumps(settings, ensure_ascii=False), quote=True)
    return Piece(name, f'<div class="live" data-piece="{name}" data-settings="{kept}">{inside}</div>')


def ask(
    question: str, answer: Any, *, low: float, high: float, unit: str = "points", paper: tuple[float, str] | None = None
) -> Piece:
    """A question before the figure that answers it: a slider for a guess, then the guess beside the measurement.

    It is no gate: the answer is one click away, and stands there where no scripts run.

    Args:
        question: ends with a question mark.
        answer: what was measured: a number, or one for each seed, which gives the mean and its 95 % interval. Without
            one, None or NaN, the question says that it was not run.
        low, high: ends of the slider, in units of the answer; they move out to an answer that lies beyond.
        unit: of the answer, in words.
        paper: the paper's number, if it has one, and where it stands.

    Raises:
        ValueError: a question without its mark, or ends in the wrong order.
    """
    if not question.rstrip().endswith("?"):
        raise ValueError(f"question must end with a question mark, got {question!r}")
    if not (is_number(low) and is_number(high) and low < high):
        raise ValueError(f"low and high must be numbers, low the smaller one; got {low!r} and {high!r}")
    values = np.atleast_1d(np.asarray(np.nan if answer is None else answer, dtype=float))
    asked = f"<p><strong>Before you look:</strong> {html.escape(question)}</p>"
    if not np.isfinite(values).all():
        return Piece("ask", f'<div class="ask" data-begun="no">{asked}<p>That was not run here.</p></div>')
    mean, ends = float(values.mean()), list(interval(values.tolist())) if len(values) > 1 else []
    mean_and_ends = [f"{value:.1f}".replace("-", "−") for value in (mean, *ends)]
    told = f"We measured {mean_and_ends[0]} {unit}"
    told += f", 95 % interval over {len(values)} seeds [{', '.join(mean_and_ends[1:])}]." if ends else "."
    if paper is not None:
        told += f" The paper: {paper[0]:g} {unit} ({paper[1]})."
    known = [mean, *ends, *(paper[:1] if paper else ())]
    low, high = min(low, math.floor(min(known))), max(high, math.ceil(max(known)))
    kept = {"low": low, "high": high, "mean": mean, "ends": ends, "paper": paper[0] if paper else None, "unit": unit}
    body = (
        f'<div class="ask" data-settings="{html.escape(json.dumps(kept), quote=True)}">{asked}'
        f'<div class="ask-guess-row"></div><details open><summary>What was measured</summary>'
        f'<p class="ask-answer">{html.escape(told)}</p><div class="ask-picture"></div></details></div>'
    )
    return Piece("ask", body)


def static() -> Path | None:
    """The folder of the scripts: in the book's, or fedlib's copy; None where neither is."""
    return next((folder for folder in book_folders("_static") if (folder / "pieces.js").is_file()), None)


@cache
def source(name: str) -> str:
    """The text of a script."""
    if name == "digits.js":
        return digits()
    folder = static()
    assert folder is not None
    return (folder / name).read_text(encoding="utf-8")


@cache
def digits() -> str:
    """JavaScript: ``DIGITS = {train: {x, y}, test: {x, y}}``, pixels as letters, labels as digits."""
    found = data.load("digits")
    halves = {
        name: {"x": letters(x), "y": "".join(map(str, y.tolist()))}
        for name, x, y in (("train", found.x_train, found.y_train), ("test", found.x_test, found.y_test))
    }
    return f"var DIGITS = {json.dumps(halves)};\n"


def letters(x: Tensor) -> str:
    """uint8 images -> a letter for each pixel, "a" (0) to "q" (16 of 16)."""
    shades = (x.flatten().double() / 255 * SHADES).round().int().tolist()
    return "".join(chr(97 + shade) for shade in shades)


def used(body: str) -> list[str]:
    """Scripts that a page with this HTML needs, each once, in their order."""
    there = [name for name in SCRIPTS if f'data-piece="{name}"' in body or (name == "ask" and 'class="ask"' in body)]
    return list(dict.fromkeys(script for name in there for script in SCRIPTS[name]))


def _picture(figure: Any, alt: str) -> str:
    import matplotlib.pyplot as plt

    from fedlib.book.explore import encode

    mime, raw = encode(figure)
    plt.close(figure)
    return f'<img src="data:{mime};base64,{base64.b64encode(raw).decode()}" alt="{html.escape(alt, quote=True)}">'

"""The data of pages that train: the digits, as a script, so that a page from disk has them, too.

A letter for each of the 17 shades of a pixel: 115 kB, and a third of that on the way.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from fedlib import data

SHADES = 16
SCRIPTS = ("digits.js", "federation.js", "host.js", "choices.js", "drawing.js", "live.js")


def write_digits(app, error):
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "_static" / "digits.js").write_text(digits(), encoding="utf-8")


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

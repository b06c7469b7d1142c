"""What a claim must reach, and whether what was measured does: an interval against a bar that has a reason.

``book/bars.yaml`` holds the bars. They are committed before the runs that they judge::

    ln-speed:
      chapter: 02_layer_normalization
      what: accuracy after 50 rounds, LN less no norm, in points
      sense: at least
      bar: 15
      reason: half of the 31 points that the paper has at its rate
      weaker: 5
      weaker_reason: more than partitions alone move a result
      since: 2026-11-28
      rounding: {quick: 0.8}

Values are paired by seed, so an interval is Student's for the mean of differences. With one seed it is everything.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

SENSES = ("at least", "at most")
PRESETS = ("quick", "cpu", "colab", "paper")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Bar:
    """What one claim, or one part of it, must reach.

    Attributes:
        id: of the claim; ``"claim/part"`` of a part.
        chapter: that judges it.
        what: what is measured, with its unit.
        sense: ``"at least"`` or ``"at most"``.
        bar: the number.
        reason: why this number.
        since: when it was set.
        weaker: a bar that is easier to reach, for "holds in part"; it has a reason, too.
        exact: the claim is about an identity or a bound, which holds or not: one number, no interval.
        learned: of a share of a gain, what the whole gain must surpass to be one.
        known: set after earlier results were known, which the page says.
        rounding: preset -> how far an end of the interval moves where the same runs are computed in another precision
            (``python -m fedlib.book.compare --rounding``); measured, not chosen.
    """

    id: str
    chapter: str
    what: str
    sense: str
    bar: float
    reason: str
    since: str
    weaker: float | None = None
    weaker_reason: str | None = None
    exact: bool = False
    learned: float | None = None
    known: bool = False
    rounding: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        where = f"bar {self.id!r}"
        for name in ("chapter", "what", "reason", "since"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{where}: {name} must be a text that is not empty, got {getattr(self, name)!r}")
        try:
            datetime.date.fromisoformat(self.since)
        except ValueError as error:
            raise ValueError(f"{where}: since must be a date such as 2026-11-28, got {self.since!r}") from error
        if self.sense not in SENSES:
            raise ValueError(f"{where}: sense must be one of {', '.join(SENSES)}, got {self.sense!r}")
        for name in ("bar", "weaker"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"{where}: {name} must be a number, got {value!r}")
        if not math.isfinite(self.bar):
            raise ValueError(f"{where}: bar must be finite, got {self.bar!r}")
        if not isinstance(self.rounding, Mapping):
            raise ValueError(f"{where}: rounding must name presets, as in {{quick: 0.8}}, got {self.rounding!r}")
        for preset, moves in self.rounding.items():
            if preset not in PRESETS:
                raise ValueError(f"{where}: rounding must name one of {', '.join(PRESETS)}, got {preset!r}")
            if isinstance(moves, bool) or not isinstance(moves, (int, float)) or not 0 <= moves < math.inf:
                raise ValueError(f"{where}: rounding of {preset!r} must be a number of at least 0, got {moves!r}")
        if (self.weaker is None) != (self.weaker_reason is None):
            raise ValueError(f"{where}: weaker and weaker_reason belong together")
        if self.weaker is not None and not self._side(self.bar, self.weaker) > 0:
            raise ValueError(f"{where}: weaker must be easier to reach than {self.bar}, got {self.weaker}")

    def _side(self, value: float, bar: float) -> float:
        """How far a value lies on the good side of a bar; negative on the other."""
        return value - bar if self.sense == "at least" else bar - value

    def verdict(self, interval: tuple[float, float], rounding: float = 0.0) -> str:
        """``"holds"``, ``"holds in part"``, ``"does not hold"`` or ``"undecided"``.

        The claim holds if the whole interval lies on the good side of the bar, and in part, if it does of the weaker
        one. It does not hold if the whole interval lies on the other side. Otherwise the bar is inside.

        Args:
            interval: its lower and upper end; NaN where a run diverged.
            rounding: an end that lies nearer to a bar than this counts as inside.
        """
        low, high = interval
        near, far = (low, high) if self.sense == "at least" else (high, low)  # the end that must pass, the best one
        if math.isnan(low) or math.isnan(high):
            return "undecided"
        if self._side(near, self.bar) >= rounding:
            return "holds"
        if self.weaker is not None and self._side(near, self.weaker) >= rounding:
            return "holds in part"
        if self.weaker is not None and abs(self._side(near, self.weaker)) < rounding:
            return "undecided"  # rounding alone would make it hold in part
        return "does not hold" if self._side(far, self.bar) < -rounding else "undecided"

    def judge(self, values: Any, rounding: float = 0.0) -> tuple[tuple[float, float], str]:
        """Interval and verdict of values, one a seed; of an exact claim of its one number; of a share of (part, whole).

        Raises:
            ValueError: values of another form.
        """
        given = np.asarray(values, dtype=float)
        if self.exact:
            if given.size != 1:
                raise ValueError(f"bar {self.id!r} is of an exact claim, which has one number, got {values!r}")
            value = float(given.reshape(()))
            return (value, value), "does not hold" if math.isnan(value) else self.verdict((value, value))
        if self.learned is not None:
            if given.ndim != 2 or len(given) != 2:
                raise ValueError(f"bar {self.id!r} is of a share: values must be (part, whole), got {values!r}")
            found = share(given[0].tolist(), given[1].tolist(), learned=self.learned)
        else:
            found = interval(np.atleast_1d(given).tolist())
        return found, self.verdict(found, rounding)


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval for the mean of independent values, one a seed: mean ± t s / √n.

    Of one value it is (-inf, inf): one seed decides nothing. A value that is not finite, of a run that diverged or
    never reached a level, makes it NaN.

    Raises:
        ValueError: no values, or more than one dimension.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values must be a list of numbers, one a seed, got {values!r}")
    if not np.isfinite(x).all():
        return math.nan, math.nan
    if len(x) == 1:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def share(
    part: Sequence[float], whole: Sequence[float], confidence: float = CONFIDENCE, learned: float = 0.0
) -> tuple[float, float]:
    """Fieller's interval for mean(part) / mean(whole), paired by seed: the share of a gain, say.

    It is (-inf, inf) unless the whole's own interval lies above ``learned``: a share of nothing is anything. So it is
    for one seed, which decides nothing.

    Raises:
        ValueError: not as many numbers in both, or none.
    """
    a, b = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"part and whole must hold one number a seed, the same seeds; got {part!r}, {whole!r}")
    low, _ = interval(b.tolist(), confidence)
    if math.isnan(low) or np.isnan(a).any():
        return math.nan, math.nan
    if low <= learned:
        return -math.inf, math.inf
    n, t = len(a), float(stats.t.ppf((1 + confidence) / 2, len(a) - 1))
    covariance = np.cov(a, b, ddof=1) / n
    g = t**2 * covariance[1, 1] / b.mean() ** 2
    if not g < 1:
        return -math.inf, math.inf
    ratio = a.mean() / b.mean()
    centre = (ratio - g * covariance[0, 1] / covariance[1, 1]) / (1 - g) if covariance[1, 1] else ratio
    spread = covariance[0, 0] - 2 * ratio * covariance[0, 1] + ratio**2 * covariance[1, 1]
    if covariance[1, 1]:
        spread -= g * (covariance[0, 0] - covariance[0, 1] ** 2 / covariance[1, 1])
    half = t / abs(b.mean()) * math.sqrt(max(spread, 0.0)) / (1 - g)
    return float(centre - half), float(centre + half)


def centre(values: Sequence) -> float:
    """What an interval surrounds: the mean of values, one a seed; of a share, (part, whole), the ratio of their means.

    NaN where a value is None, as in a record of a run that diverged.
    """
    given = np.asarray(values, dtype=float)
    return float(given.mean() if given.ndim < 2 else given[0].mean() / given[1].mean()) if given.size else math.nan


def together(verdicts: Sequence[str]) -> str:
    """Of a claim of several parts: it holds only if every part does, and does not if any part does not."""
    if not verdicts:
        return "not run"
    for one in ("not run", "does not hold", "undecided", "holds in part"):
        if one in verdicts:
            return one
    return "holds"


class _Once(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the second of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"bar or field {twice!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> dict[str, Bar]:
    """id -> bar. A claim of several parts has one bar for each, ``"claim/part"``.

    Raises:
        ValueError: a bar that is malformed, by its name and field.
    """
    given = yaml.load(Path(path).read_text(encoding="utf-8"), _Once) or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{path} must hold bars by the names of their claims, got {given!r}")
    found: dict[str, Bar] = {}
    for id, fields in given.items():
        found |= _parts(id, fields)
    return found


def _parts(id: str, fields: Any) -> dict[str, Bar]:
    if not isinstance(fields, Mapping):
        raise ValueError(f"bar {id!r} must be fields with their values, got {fields!r}")
    rest = {name: _dated(value) for name, value in fields.items() if name != "parts"}
    parts = fields.get("parts")
    if parts is None:
        return {id: _bar(id, rest)}
    return {f"{id}/{part}": _bar(f"{id}/{part}", {**rest, **(own or {})}) for part, own in parts.items()}


def _dated(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date) else value  # YAML reads dates


def _bar(id: str, fields: Mapping[str, Any]) -> Bar:
    try:
        return Bar(id, **fields)
    except TypeError as error:
        raise ValueError(f"bar {id!r}: {error}") from error

"""What has moved between two records: ``python -m fedlib.book.compare A.json B.json``.

A claim has moved if its verdict differs, or if the mean of one record lies outside the interval of the other. It exits
with 1 where anything has.

``--rounding`` prints instead how far each end of an interval lies from itself, as ``book/bars.yaml`` keeps it: of the
same runs in two precisions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedlib.book.bars import centre
from fedlib.book.claims import read_result

ROUNDED = 1e-5  # of a number: records have six digits


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """A line for each claim of two records that has moved, or that only one of them has.

    Raises:
        ValueError: their numbers must not be compared (``comparability`` on their cards).
    """
    cards = [record["made"].get("comparability") for record in (old, new)]
    if cards[0] != cards[1]:
        raise ValueError(f"these records must not be compared: comparability {cards[0]} and {cards[1]} on their cards")
    before, after = ({claim["id"]: claim for claim in record["claims"]} for record in (old, new))
    for id in dict.fromkeys([*before, *after]):
        if id not in before or id not in after:
            yield f"{id}: only in the {'second' if id not in before else 'first'}"
            continue
        one, other = before[id], after[id]
        if one["verdict"] != other["verdict"]:
            yield f"{id}: {one['verdict']} -> {other['verdict']}"
        parts = [{part["id"]: part for part in claim.get("parts", ())} for claim in (one, other)]
        for name in dict.fromkeys([*parts[0], *parts[1]]):
            if all(name in of for of in parts):
                yield from _moved(parts[0][name], parts[1][name])
            else:
                yield f"{name}: only in the {'second' if name not in parts[0] else 'first'}"


def _moved(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for name in ("sense", "bar", "weaker"):
        if one[name] != other[name]:
            yield f"{one['id']}: {name} {one[name]} -> {other[name]}"
    means = [centre(part["values"]) for part in (one, other)]
    outside = [_outside(means[1 - i], part["interval"]) for i, part in enumerate((one, other))]
    if any(outside) or np.isnan(means).any() and not np.isnan(means).all():
        spans = [f"[{', '.join('–' if end is None else f'{end:.4g}' for end in p['interval'])}]" for p in (one, other)]
        yield f"{one['id']}: {means[0]:.4g} {spans[0]} -> {means[1]:.4g} {spans[1]}"


def apart(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, float]:
    """Part of a claim -> the larger distance between the ends of its two intervals; NaN where only one record has any.

    Exact claims have no such distance: they are about rounding.

    Raises:
        ValueError: the records have different seeds or chapters, so that more than rounding is between them.
    """
    if old["seeds"] != new["seeds"]:
        raise ValueError(f"records must be of the same runs, got seeds {old['seeds']} and {new['seeds']}")
    if old["name"] != new["name"]:
        raise ValueError(f"records must be of one chapter, got {old['name']} and {new['name']}")
    parts = [{p["id"]: p for claim in record["claims"] for p in claim.get("parts", ())} for record in (old, new)]
    found = {}
    for id in [id for id in parts[0] if id in parts[1] and not parts[0][id]["exact"]]:
        ends = [[math.nan if end is None else end for end in of[id]["interval"]] for of in parts]
        if not np.isnan(ends).all():
            found[id] = float(np.abs(np.subtract(ends[0], ends[1])).max())
    return found


def _up(distance: float) -> str:
    """Two digits, rounded up, so that what is kept is never less than what was found; "unknown" for NaN."""
    if math.isnan(distance):
        return "unknown"
    digit = 10.0 ** (math.floor(math.log10(distance)) - 1) if distance else 1.0
    return f"{math.ceil(round(distance / digit, 6)) * digit:.2g}"


def _outside(mean: float, interval: list[float | None]) -> bool:
    low, high = interval
    off = ROUNDED * abs(mean)
    return low is not None and mean < low - off or high is not None and mean > high + off


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs=2, type=Path, metavar="RECORD.json")
    parser.add_argument("--rounding", action="store_true", help="print how far the ends of intervals lie apart")
    given = parser.parse_args(arguments)
    old, new = map(read_result, given.records)
    if given.rounding:
        print("\n".join(f"{id}: {{{old['preset']}: {_up(distance)}}}" for id, distance in apart(old, new).items()))
        return 0
    lines = list(moved(old, new))
    print("\n".join(lines) or "nothing has moved")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())

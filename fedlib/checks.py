"""What arguments must be. Every refusal names the argument, what it accepts and what it got.

Imports nothing of fedlib, so that every module can use it.
"""

import difflib
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number: an int, or NumPy's or torch's word for one; no bool."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, whole ones, infinities and NaN included; no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def whole(least: int = 1, /, **values: Any) -> None:
    """Raise ValueError for the first of `values` that is no whole number of at least `least`."""
    for name, value in values.items():
        if not is_whole(value) or operator.index(value) < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def positive(**values: Any) -> None:
    """Raise ValueError for the first of `values` that is no positive finite number."""
    for name, value in values.items():
        if not is_number(value) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def fraction(**values: Any) -> None:
    """Raise ValueError for the first of `values` that is no number in [0, 1]."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}")


def choice(argument: str, value: Any, accepted: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `accepted`; the message lists them and names the nearest."""
    accepted = list(accepted)
    if value not in accepted:
        raise ValueError(f"{argument} must be one of {', '.join(accepted)}; got {value!r}.{hint(value, accepted)}")


def hint(value: Any, known: Iterable[str]) -> str:
    """`" Did you mean 'cifar10'?"`, the one or two of `known` that `value` is nearest to; empty where none is near."""
    spelled = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(value), spelled, n=2)
    return f" Did you mean {' or '.join(repr(spelled[name]) for name in near)}?" if near else ""


def _plain(name: Any) -> str:
    return str(name).lower().replace("-", "_")

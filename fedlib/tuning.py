"""Every method at its best: compare the settings of a sweep, and go on past its ends.

A comparison is fair if each method has the learning rate that suits it. These functions read the runs that
:func:`fedlib.simulate.sweep` returns; accuracies are in per cent, those of the last evaluated round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedlib.simulate import Run


def finals(runs: Sequence[Run]) -> list[float]:
    """Test accuracy of each run after its last round, in per cent; NaN for one that diverged."""
    return [100 * run.accuracy if run.diverged is None else math.nan for run in runs]


def mean(runs: Sequence[Run]) -> float:
    """Mean of :func:`finals`; -1 if any run diverged, which puts its setting out of the competition."""
    value = float(np.mean(finals(runs)))
    return value if math.isfinite(value) else -1.0


def by(runs: Sequence[Run], setting: str = "lr") -> dict[float, list[Run]]:
    """The runs of each value of ``setting`` (``"lr"``, ``"mu"``, ``"seed"``, ...), in ascending order."""
    values = sorted({run.config[setting] for run in runs})
    return {value: [run for run in runs if run.config[setting] == value] for value in values}


def best(runs: Sequence[Run], setting: str = "lr") -> float:
    """The value of ``setting`` with the highest mean accuracy over its runs, the smallest of equals."""
    groups = by(runs, setting)
    return max(groups, key=lambda value: (mean(groups[value]), -value))


def next_rate(lr: float, step: int) -> float:
    """The rate ``step`` steps further along ..., 0.03, 0.1, 0.3, 1, ..."""
    return float(f"{10 ** ((round(2 * math.log10(lr)) + step) / 2):.1g}")


def tune(train: Callable[[list[float]], list[Run]], rates: Sequence[float], *, widen: int = 3) -> list[Run]:
    """The runs of all rates, and of rates past an end of them while the best one is there.

    Args:
        train: given learning rates, returns the runs of all of them (all seeds).
        rates: the rates to begin with.
        widen: the largest number of rates to add, one by one; 0 adds none. Rates that all score the same are left.

    Returns:
        Runs of every rate that was tried; see :func:`by` and :func:`best`.
    """
    runs = list(train(list(rates)))
    for _ in range(widen):
        groups, top = by(runs), best(runs)
        scores = [mean(group) for group in groups.values()]
        if max(scores) - min(scores) < 1e-9 or top not in (min(groups), max(groups)):
            break
        runs += train([next_rate(top, -1 if top == min(groups) else 1)])
    return runs

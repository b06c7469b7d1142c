import math

import pandas as pd
import pytest

from fedlib import tuning
from fedlib.simulate import Run


def made(lr, accuracy, seed=0, diverged=None):
    history = pd.DataFrame({"accuracy": [accuracy]})
    return Run({"lr": lr, "seed": seed}, history, pd.DataFrame(), diverged, 0.0, lambda client: None)


def peaked(top):
    """Two seeds a rate; accuracy falls off with the distance from ``top`` on a logarithmic scale."""
    asked = []

    def train(lrs):
        asked.append(list(lrs))
        return [made(lr, 0.9 - 0.1 * abs(math.log10(lr / top)), seed) for lr in lrs for seed in (0, 1)]

    return train, asked


@pytest.mark.parametrize(
    "top, more", [(0.03, []), (0.1, [0.3]), (1.0, [0.3, 1.0, 3.0]), (30.0, [0.3, 1.0, 3.0]), (0.003, [0.003, 0.001])]
)
def test_tuning_goes_on_past_an_end_while_the_best_is_there(top, more):
    train, asked = peaked(top)
    runs = tuning.tune(train, [0.01, 0.03, 0.1])
    assert asked == [[0.01, 0.03, 0.1], *([lr] for lr in more)]
    assert tuning.best(runs) == pytest.approx(min(top, max([0.1, *more])))
    assert [len(group) for group in tuning.by(runs).values()] == [2] * (3 + len(more))


def test_rates_that_all_score_the_same_are_not_widened():
    assert len(tuning.tune(lambda lrs: [made(lr, 0.1) for lr in lrs], [0.01, 0.1])) == 2
    assert len(tuning.tune(peaked(1.0)[0], [0.01, 0.1], widen=0)) == 4


def test_a_rate_at_which_a_seed_diverged_cannot_win():
    runs = [made(0.1, 0.9), made(0.1, 0.95, 1, "NaN in round 3"), made(0.01, 0.2), made(0.01, 0.2, 1)]
    assert tuning.best(runs) == 0.01
    assert tuning.mean(runs[:2]) == -1 and math.isnan(tuning.finals(runs)[1])
    assert tuning.best([made(0.1, 0.5), made(0.01, 0.5)]) == 0.01, "the smallest of equals"
    assert list(tuning.by(runs, "seed")) == [0, 1]


@pytest.mark.parametrize("lr, step, expected", [(0.01, 1, 0.03), (0.03, 1, 0.1), (0.3, 1, 1.0), (0.1, -1, 0.03)])
def test_rates_lie_on_half_decades(lr, step, expected):
    assert tuning.next_rate(lr, step) == expected

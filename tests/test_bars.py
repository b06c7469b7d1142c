"""Intervals against bars."""

import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedlib.book import bars
from fedlib.book.bars import Bar

ROOT = Path(__file__).resolve().parents[1]
quick = settings(max_examples=50, derandomize=True, deadline=None)


def bar(**changes):
    fields = {"id": "x", "chapter": "c", "what": "points", "sense": "at least", "bar": 10, "reason": "r",
              "since": "2026-11-28"}  # fmt: skip
    return Bar(**fields | changes)


@pytest.mark.parametrize(
    "interval, verdict, in_part",
    [
        ((11, 20), "holds", "holds"),
        ((10, 20), "holds", "holds"),
        ((9, 20), "undecided", "holds in part"),
        ((5, 9), "does not hold", "holds in part"),
        ((3, 9), "does not hold", "does not hold"),
        ((3, 11), "undecided", "undecided"),
        ((-math.inf, math.inf), "undecided", "undecided"),
        ((math.nan, math.nan), "undecided", "undecided"),
    ],
)
def test_the_verdict_follows_from_the_interval(interval, verdict, in_part):
    assert bar().verdict(interval) == verdict
    assert bar(weaker=5, weaker_reason="w").verdict(interval) == in_part
    mirrored = (-interval[1], -interval[0])
    assert bar(sense="at most", bar=-10).verdict(mirrored) == verdict
    assert bar(sense="at most", bar=-10, weaker=-5, weaker_reason="w").verdict(mirrored) == in_part


def test_an_end_within_rounding_of_the_bar_counts_as_inside():
    assert bar().verdict((10.4, 12), rounding=0.5) == "undecided" and bar().verdict((10.5, 12), rounding=0.5) == "holds"
    assert bar().verdict((7, 9.6), rounding=0.5) == "undecided"
    assert bar().verdict((7, 9.4), rounding=0.5) == "does not hold"
    lenient = bar(weaker=5, weaker_reason="w")
    found = [lenient.verdict((low, 8), rounding=0.5) for low in (5.6, 5.2, 4.8, 4.4)]
    assert found == ["holds in part", "undecided", "undecided", "does not hold"]


@quick
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_the_interval_is_students(values):
    low, high = bars.interval(values)
    if np.std(values) > 1e-9:
        wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((wanted.low, wanted.high), rel=1e-9, abs=1e-9)
    else:
        assert low == pytest.approx(high, abs=1e-6)


def test_one_seed_decides_nothing_and_a_lost_run_neither():
    assert bars.interval([60.0]) == (-math.inf, math.inf)
    assert all(math.isnan(end) for end in bars.interval([60.0, math.nan]))
    assert bar().judge([60.0])[1] == bar().judge([60.0, math.nan])[1] == "undecided"
    assert bar().judge([60.0, 61.0])[1] == "holds"
    for values in ([], [[1.0, 2.0]], 3.0):
        with pytest.raises(ValueError, match="values must be a list of numbers, one a seed"):
            bars.interval(values)


def covered(draw, n, times=20_000):
    x = draw(np.random.default_rng(n), (times, n))
    half = stats.t.ppf(0.975, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    return float((np.abs(x.mean(1)) <= half).mean())


SYMMETRIC = {"normal": lambda rng, size: rng.normal(size=size), "t3": lambda rng, size: rng.standard_t(3, size)}


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("kind", SYMMETRIC)
def test_intervals_of_symmetric_differences_cover_the_mean(kind, n):
    """Simulated: of 20,000 experiments of n seeds, how many intervals contain the truth."""
    found = covered(SYMMETRIC[kind], n)
    assert 0.93 <= found <= 0.98
    rng = np.random.default_rng(0)
    for _ in range(5):  # that the shortcut above is what a claim uses
        x = SYMMETRIC[kind](rng, n)
        low, high = bars.interval(x)
        half = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n)
        assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half))


def test_the_glossary_has_the_coverage_of_skewed_differences():
    text = (Path(__file__).resolve().parents[1] / "book" / "glossary.md").read_text(encoding="utf-8")
    five, ten = re.search(r"it does so (\d+) times in 100 with 5 seeds and (\d+) times with 10", text).groups()
    for n, told in ((5, five), (10, ten)):
        found = covered(lambda rng, size: rng.exponential(size=size) - 1, n)
        assert round(100 * found) == int(told)


def test_a_share_of_a_gain_is_covered_as_often_as_it_should():
    rng, truth, inside, times = np.random.default_rng(0), 0.6, 0, 2000
    for _ in range(times):
        whole = rng.normal(20, 6, 10)
        part = truth * whole + rng.normal(0, 3, 10)
        low, high = bars.share(part, whole)
        inside += low <= truth <= high
    assert 0.93 <= inside / times <= 0.97


def test_a_share_of_nothing_is_anything():
    rng = np.random.default_rng(1)
    assert bars.share(rng.normal(1, 1, 8), rng.normal(0, 1, 8)) == (-math.inf, math.inf)
    assert bars.share([2.0, 2.0, 2.0], [4.0, 4.0, 4.0]) == pytest.approx((0.5, 0.5))
    assert all(math.isnan(end) for end in bars.share([1.0, math.nan], [2.0, 2.0]))
    with pytest.raises(ValueError, match="part and whole must hold one number a seed, the same seeds"):
        bars.share([1.0, 2.0], [1.0])


def test_a_share_of_a_loss_is_no_share_and_a_bar_may_be_of_one():
    assert bars.share([-5, -5.2, -4.9], [-10, -10.1, -9.9]) == (-math.inf, math.inf)
    assert bars.share([5, 5.2, 4.9], [10, 10.1, 9.9], learned=12) == (-math.inf, math.inf)
    kept = bar(bar=0.4, learned=5.0)
    assert kept.judge(([5, 5.2, 4.9], [10, 10.1, 9.9]))[1] == "holds"
    assert kept.judge(([5, 5.2, 4.9], [4, 5, 4.5]))[1] == "undecided"
    with pytest.raises(ValueError, match="is of a share: values must be .part, whole."):
        kept.judge([1.0, 2.0])


def test_parts_hold_only_together():
    assert bars.together(["holds", "holds"]) == "holds"
    assert bars.together(["holds", "undecided"]) == "undecided"
    assert bars.together(["undecided", "does not hold", "holds"]) == "does not hold"
    assert bars.together(["holds in part", "holds"]) == "holds in part"
    assert bars.together(["holds", "not run"]) == bars.together([]) == "not run"


def test_an_exact_claim_has_no_interval():
    exact = bar(sense="at most", bar=1e-9, exact=True)
    assert exact.judge(3e-15) == ((3e-15, 3e-15), "holds") and exact.judge([1e-8])[1] == "does not hold"
    assert exact.judge(math.nan)[1] == "does not hold"
    with pytest.raises(ValueError, match="bar 'x' is of an exact claim, which has one number"):
        exact.judge([1.0, 2.0])


def test_bars_are_read_with_their_parts(tmp_path):
    file = tmp_path / "bars.yaml"
    file.write_text(
        """
one: {chapter: c, what: points, sense: at least, bar: 5, reason: r, since: 2026-11-28}
two:
  chapter: c
  what: share
  sense: at most
  reason: shared
  since: 2026-11-28
  parts:
    LN: {bar: 3}
    FN: {bar: 4, reason: own}
""",
        encoding="utf-8",
    )
    found = bars.load(file)
    assert list(found) == ["one", "two/LN", "two/FN"] and found["one"].since == "2026-11-28"
    assert (found["two/LN"].bar, found["two/LN"].reason, found["two/FN"].reason) == (3, "shared", "own")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reason": " "}, "bar 'x': reason must be a text that is not empty"),
        ({"sense": "above"}, "sense must be one of at least, at most, got 'above'"),
        ({"bar": True}, "bar must be a number, got True"),
        ({"bar": math.inf}, "bar must be finite"),
        ({"since": "today"}, "since must be a date such as"),
        ({"weaker": 5}, "weaker and weaker_reason belong together"),
        ({"weaker": 12, "weaker_reason": "w"}, "weaker must be easier to reach than 10, got 12"),
        ({"rounding": {"quick": -1}}, "rounding of 'quick' must be a number of at least 0, got -1"),
        ({"rounding": 0.8}, "bar 'x': rounding must name presets, as in {quick: 0.8}, got 0.8"),
        ({"rounding": {"qiuck": 1}}, "rounding must name one of quick, cpu, colab, paper, got 'qiuck'"),
    ],
)
def test_a_bar_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bar(**changes)


def test_a_file_that_is_malformed_is_refused_by_name(tmp_path):
    file = tmp_path / "bars.yaml"
    for text, message in (
        ("one: 5", "bar 'one' must be fields"),
        ("one: {bra: 5}", "bar 'one': .*bra"),
        ("- one", "bars.yaml must hold bars by the names of their claims, got .'one'."),
        ("one: {bar: 5}\ntwo: {}\none: {bar: 6}", "bar or field 'one' stands twice"),
        ("one: {bar: 5, sense: at least, bar: 6}", "bar or field 'bar' stands twice"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            bars.load(file)


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


@pytest.mark.parametrize("file", sorted((ROOT / "book" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_bars_stood_in_the_commit_that_the_run_was_made_from(file, tmp_path):
    result = json.loads(file.read_text(encoding="utf-8"))
    judged = {part["id"]: part for claim in result["claims"] for part in claim.get("parts", ())}
    if not judged:
        return  # its claims are of the older kind
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("the history of the repository is not here")
    shown = git("show", f"{result['made']['commit']}:book/bars.yaml")
    assert shown.returncode == 0, f"{file.name} was made from a commit that is not in the history: {shown.stderr}"
    (tmp_path / "bars.yaml").write_text(shown.stdout, encoding="utf-8")
    then = bars.load(tmp_path / "bars.yaml")
    for id, part in judged.items():
        # a reason may be worded better later; a number may not move
        for field in ("sense", "bar", "weaker", "exact", "learned"):
            assert getattr(then[id], field) == part[field], f"{file.name}, {id}: {field}"

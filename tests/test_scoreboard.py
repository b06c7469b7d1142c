"""The scoreboard's HTML: cards with intervals and bars, and the short table of the front page."""

import math
import re
from pathlib import Path

import pytest
import scoreboard

from fedlib.book import bars, claims
from fedlib.book.claims import Claim

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results"
SPEED = {
    f"speed/{name}": bars.Bar(
        f"speed/{name}", "02_x", "how far LN is ahead, in points", sense, bar, "half the paper's lead", "2026-11-28",
        weaker=weaker, weaker_reason=None if weaker is None else "more than a partition moves",
    )
    for name, sense, bar, weaker in [("accuracy", "at least", 15.0, 5.0), ("rounds", "at most", 0.25, None)]
}  # fmt: skip


def speed(**values):
    return claims.measured("speed", "02_x", "LN < FN & <b>.", "+20 points (Table 1)", "told", values, known=SPEED)


def old(id="old", verdict="holds", measured=21.3, chapter="02_x"):
    return Claim(id, chapter, "Layers help.", "87 %", measured, verdict)


def save(folder, *given, chapter="02_x", preset="quick"):
    claims.save_results(chapter, preset, config={}, claims=given, folder=folder)


def both(folder, titles=None):
    """The page and the front page's table."""
    board = scoreboard.chapters(folder, titles or {})
    return scoreboard.cards(board, claims.summary(folder)), scoreboard.brief(board)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, old(), speed(accuracy=[10.0, 12.0, 11.0], rounds=[0.1, 0.12, 0.11]))
    save(tmp_path, speed(accuracy=[2.0, 22.0, 30.0], rounds=[math.nan, 0.2, 0.2]), preset="cpu")
    save(tmp_path, old("other", "not run", "", "03_y"), chapter="03_y")
    return tmp_path


def test_nothing_recorded_is_said_so(tmp_path):
    for text in both(tmp_path / "missing"):
        assert "No results are recorded" in text


def test_html_is_one_block_of_markdown_and_escapes(folder):
    for text in both(folder, {"02_x": "Layers & skew"}):
        assert not re.search(r"^\s", text, re.M) and "\n\n" not in text
        assert 'href="02_x.html#claim-speed"' in text and "LN &lt; FN &amp; &lt;b&gt;." in text
        assert '<span class="chapter">Layers &amp; skew</span>' in text and '<span class="chapter">03_y</span>' in text


def test_failures_come_first_and_every_preset_has_its_verdict(folder):
    first, second = scoreboard.chapters(folder, {})
    assert [claim["id"] for claim in first["claims"]] == ["speed", "old"]
    assert first["counts"] == {"holds": 1, "undecided": 1} and second["counts"] == {"not run": 1}
    claim = first["claims"][0]
    assert [(p["name"], p["verdict"]) for p in claim["presets"]] == [("quick", "holds in part"), ("cpu", "undecided")]
    assert claim["verdict"] == "undecided" and second["claims"][0]["presets"] == []


def test_a_part_has_the_interval_of_each_preset_on_one_axis(folder):
    accuracy, rounds = scoreboard.chapters(folder, {})[0]["claims"][0]["parts"]
    quick, cpu = accuracy["lines"]
    assert (quick["low"], quick["high"]) == pytest.approx(bars.interval([10, 12, 11]), abs=1e-4)
    assert quick["mean"] == pytest.approx(11) and quick["seeds"] == 3
    assert accuracy["axis"].low < cpu["low"] < cpu["high"] < accuracy["axis"].high
    assert [line["verdict"] for line in rounds["lines"]] == ["holds", "undecided"]
    assert rounds["lines"][1]["stands"] == "" and math.isnan(rounds["lines"][1]["low"])
    text, _ = both(folder)
    assert "no interval: not every seed has a number" in text and "nan" not in text
    assert "In part from 5: more than a partition moves." in text


def test_the_front_page_has_the_largest_preset_alone(folder):
    _, text = both(folder)
    assert 'told <span class="preset">cpu</span>' in text and "quick</span>" in text  # of the claim without cpu
    assert "<article" not in text and " open" not in text


def covers(said, bar):
    """Whether a sentence such as "for bars from 1.0 to 3.0" speaks of a bar."""
    low, high = {"up to": (-math.inf, 0), "above": (0, math.inf), "below": (-math.inf, 0), "from": (0, 1)}[
        next(words for words in ("up to", "above", "below", "from") if words in said)
    ]
    numbers = [*map(float, re.findall(r"-?[\d.]+", said)), math.inf]
    low, high = (numbers[end] if math.isfinite(end) else end for end in (low, high))
    return low <= bar <= high


@pytest.mark.parametrize("sense", bars.SENSES)
@pytest.mark.parametrize("weaker", [None, 2.0])
@pytest.mark.parametrize("rounding", [0.0, 0.5])
@pytest.mark.parametrize("interval", [(1.0, 3.0), (3.0, 6.0), (-4.0, 1.0)])
def test_bars_for_which_a_verdict_stands_are_those_that_give_it(sense, weaker, interval, rounding):
    """The sentence, read as inequalities, against the rule itself, for all bars on a grid that misses the ends."""
    told = {}
    for bar in [k / 4 + 0.1 for k in range(-32, 40)]:
        easier = weaker is not None and (weaker < bar if sense == "at least" else weaker > bar)
        asked = bars.Bar("a", "b", "c", sense, bar, "d", "2026-11-28", *((weaker, "e") if easier else ()))
        verdict = asked.verdict(interval, rounding)
        part = {
            "sense": sense,
            "interval": interval,
            "rounding": rounding,
            "verdict": verdict,
            "values": [1.0, 2.0],
            "weaker": asked.weaker,
        }
        said = scoreboard._line("quick", part | {"exact": False, "learned": None})["stands"].replace("−", "-")
        assert covers(said, bar), (said, bar, verdict)
        told.setdefault((verdict, said), []).append(bar)
    for (verdict, said), bars_of in told.items():  # and of no other bar
        others = {other for kind, own in told.items() if kind[0] != verdict for other in own}
        assert not any(covers(said, other) for other in others), (verdict, said, bars_of)


@pytest.mark.parametrize("shown, bar", [([8.1, 19.3, 0], 15), ([0.05, 0.4], 0.25), ([-3e5, 1e6], 2.5), ([7, 7], 7)])
def test_a_slider_starts_at_its_bar_and_holds_all_that_is_shown(shown, bar):
    axis = scoreboard.Axis([*shown, bar], bar)
    steps = (bar - axis.low) / axis.step
    assert steps == pytest.approx(round(steps), abs=1e-6)
    assert axis.low < min(*shown, bar) and axis.high > max(*shown, bar)
    assert scoreboard.STEPS <= (axis.high - axis.low) / axis.step


def test_recorded_verdicts_follow_from_recorded_intervals():
    """Where the page starts is what its sliders would say."""
    parts = 0
    for presets in claims.load_results(RESULTS).values():
        for result in presets.values():
            for part in (part for claim in result["claims"] for part in claim.get("parts", [])):
                if part["values"]:
                    bar = bars.Bar(**{name: part[name] for name in scoreboard.BAR if name in part})
                    low, high = (math.nan if end is None else end for end in part["interval"])
                    assert bar.verdict((low, high), part.get("rounding", 0.0)) == part["verdict"], part["id"]
                    parts += 1
    assert parts > 20

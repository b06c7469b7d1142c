import re
from html import unescape

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from fedlib.book import plots
from fedlib.book.explore import explore, explore_runs

matplotlib.use("agg")
all_at_once = pytest.mark.skipif(not hasattr(ipywidgets, "Stack"), reason="this ipywidgets draws when asked, see below")


def draw(a, b="x"):
    if (a, b) == (2, "y"):
        raise ValueError("no <b>such</b> run")
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, a])
    return fig


def alt_of(frame):
    return unescape(re.search('alt="([^"]*)"', frame)[1])


@all_at_once
def test_one_frame_a_setting_each_with_its_own_text():
    made = explore(draw, alt="A line.", labels={"a": "slope α"}, a=[1, 2], b=["x", "ü<"])
    assert [setting["a"] for setting in made.settings] == [1, 1, 2, 2]
    assert [alt_of(frame) for frame in made.frames][1] == "A line. Setting: slope α 1, b ü<."
    assert all(re.search(r"data:image/(webp|png);base64,", frame) for frame in made.frames)
    assert "ü<" not in made.frames[1]  # escaped


@all_at_once
def test_alt_may_be_a_function_of_the_setting():
    made = explore(draw, alt=lambda a, b: f'{a} and "{b}"', a=[1], b=["x", "z"])
    assert alt_of(made.frames[1]) == '1 and "z"'


@all_at_once
def test_controls_are_linked_to_every_stack_in_the_browser():
    made = explore(draw, alt="A line.", start={"a": 3}, a=[1, 3], b=["x", "y", "z"])
    controls, outer = made.widget.children[0].children, made.widget.children[1]
    assert [type(control).__name__ for control in controls] == ["SelectionSlider", "Dropdown"]
    assert [type(child).__name__ for child in outer.children] == ["Stack", "Stack"]
    assert outer.selected_index == controls[0].index == 1
    assert outer.children[0].children[2].value == made.frames[2]


@all_at_once
def test_a_draw_that_raises_gives_a_frame_that_says_so():
    made = explore(draw, alt="A line.", a=[1, 2], b=["x", "y"])
    assert "Nothing to show for a 2, b y: ValueError: no &lt;b&gt;such&lt;/b&gt; run" in made.frames[3]
    assert "img" in made.frames[2]
    with pytest.raises(ValueError, match="such"):
        explore(draw, alt="A line.", a=[2], b=["y"])


def test_old_ipywidgets_draw_when_asked(monkeypatch):
    monkeypatch.delattr(ipywidgets, "Stack", raising=False)
    calls = []

    def counted(a, b):
        calls.append((a, b))
        return draw(a, b)

    made = explore(counted, alt="A line.", a=[1, 2], b=["x", "y"])
    controls, picture = made.widget.children[0].children, made.widget.children[1]
    assert calls == [(1, "x")]
    controls[0].index = 1
    assert alt_of(picture.value) == "A line. Setting: a 2, b x."
    controls[1].index = 1
    assert "Nothing to show" in picture.value
    controls[0].index, controls[1].index = 0, 0
    assert calls == [(1, "x"), (2, "x"), (2, "y"), (1, "y")]  # each drawn once


def test_it_shows_a_picture_where_there_are_no_widgets(monkeypatch):
    shown = []
    monkeypatch.setattr("fedlib.book.explore.display", lambda bundle, raw: shown.append(bundle))
    explore(draw, alt="A line.", a=[1])._ipython_display_()
    assert set(shown[0]) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}


def test_figures_are_closed():
    before = plt.get_fignums()
    explore(draw, alt="A line.", a=[1, 2], b=["x", "y"])
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "at least one parameter"),
        ({"a": []}, "parameter 'a' needs at least one value"),
        ({"a": [1, 1]}, "values of parameter 'a' must differ"),
        ({"a": range(16), "b": ["x", "y"]}, "16 a × 2 b = 32 frames, but at most 30"),
        ({"a": [1], "labels": {"c": "C"}}, r"labels names unknown parameters \['c'\]"),
        ({"a": [1], "start": {"a": 5}}, r"start of 'a' must be one of \[1\], got 5"),
        ({"a": [1], "alt": " "}, "alt must say what the picture shows"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explore(draw, **{"alt": "A line.", **options})


@all_at_once
def test_draw_must_give_a_figure():
    with pytest.raises(TypeError, match="draw must return a matplotlib figure or None, got str"):
        explore(lambda a: "text", alt="A line.", a=[1])


def test_words_in_an_order_get_a_slider():
    made = explore(draw, alt="A line.", ordered=["b"], a=[1], b=["x", "z"], live=True)
    controls = made.widget.children[0].children
    assert [type(control).__name__ for control in controls] == ["Dropdown", "SelectionSlider"]
    with pytest.raises(ValueError, match=r"ordered names unknown parameters \['c'\]; known: a, b"):
        explore(draw, alt="A line.", ordered=["c"], a=[1], b=["x", "z"])


FRAME = pd.DataFrame({"round": [1, 2], "accuracy": [0.1, 0.5]})
RUNS = {
    (0.3, "digits"): {"LN": FRAME, "FN": [FRAME, FRAME]},
    (0.1, "digits"): {"LN": FRAME},
    (0.1, "text"): {"LN": FRAME},
}


def recorded(**options):
    return explore_runs(
        RUNS,
        ("rate", "data"),
        lambda rate, data: f"{data} at {rate:g}",
        among="rate",
        live=True,
        scale=100,
        ylabel="accuracy (%)",
        **options,
    )


def test_recorded_runs_show_the_chosen_setting_among_its_neighbours():
    made = recorded()
    assert made.grid == {"rate": [0.1, 0.3], "data": ["digits", "text"]}
    ax = made.draw(rate=0.3, data="digits").axes[0]
    shades = {(line.get_label(), line.get_color()) for line in ax.lines}
    assert shades == {("LN", plots.colour("LN")), ("FN", plots.colour("FN")), ("_", plots.FAINT)}
    assert {text.get_text() for text in ax.texts} == {"LN", "FN"}
    assert ax.get_title() == "digits at 0.3" and ax.get_ylabel() == "accuracy (%)"
    ax = made.draw(rate=0.3, data="text").axes[0]  # not run: its neighbour alone
    assert [line.get_color() for line in ax.lines] == [plots.FAINT] and not ax.texts
    assert alt_of(made.frames[0]) == "accuracy (%) against round: digits at 0.1."
    assert alt_of(recorded(start={"rate": 0.3}).frames[2]) == "accuracy (%) against round: digits at 0.3."
    plt.close("all")


@pytest.mark.parametrize(
    "runs, options, message",
    [
        ({}, {}, "runs must hold at least one setting"),
        ({(0.1,): {"LN": FRAME}}, {}, r"a setting must be a tuple of 2 values \(rate, data\), got \(0.1,\)"),
        ({0.1: {"LN": FRAME}}, {}, "a setting must be a tuple of 2 values"),
        (RUNS, {"among": "seed"}, "among must be one of rate, data, got 'seed'"),
        (RUNS, {"start": {"rate": 9}}, "start of 'rate' must be one of"),
    ],
)
def test_bad_recorded_runs_are_refused(runs, options, message):
    with pytest.raises(ValueError, match=message):
        explore_runs(runs, ("rate", "data"), lambda **_: "words", **{"among": "rate", "live": True, **options})

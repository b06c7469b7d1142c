import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import fedlib as fl
from fedlib.book import plots

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def axes():
    yield
    plt.close("all")


def contrast_on_white(color):
    channels = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def test_every_colour_can_be_read_on_white_and_has_one_look():
    looks = set(plots._STYLES.values())
    assert len(looks) == len(plots._STYLES)
    assert all(contrast_on_white(color) >= 3 for color, _ in looks)


def test_a_method_keeps_its_colour():
    assert plots.colour("LN") == plots.colour("layer") == plots.colour(" FedLN ")
    assert plots.colour("something new") == plots.colour("something new")


@pytest.mark.parametrize("at", [[0.5, 0.5, 0.5], [0.99, 1.0, 0.98], [0.0, 0.01, 0.9], [0.2, 0.8, 0.5]])
def test_labels_keep_their_order_and_distance(at):
    moved = plots._spread(np.array(at), 0.1)
    assert np.all(np.diff(np.sort(moved)) >= 0.1 - 1e-9)
    assert np.array_equal(np.argsort(moved, kind="stable"), np.argsort(at, kind="stable"))
    assert moved.min() >= -1e-9 and moved.max() <= 1 + 1e-9
    np.testing.assert_allclose(plots._spread(np.array([0.2, 0.8]), 0.1), [0.2, 0.8])


def test_band_is_mean_and_sample_spread_of_the_runs_still_alive():
    ax = plt.subplots()[1]
    plots.band(ax, [1, 2, 3], [[1, 2, 3], [3, 4, np.nan]], "LN")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 3, 3])
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(3 + 2**0.5)
    with pytest.raises(ValueError, match=r"values must be \(seeds, 2\) for 2 points, got \(1, 3\)"):
        plots.band(ax, [1, 2], [1, 2, 3], "LN")


def test_highlight_colours_the_chosen_run_and_greys_the_others():
    frame = pd.DataFrame({"round": [1, 2, 3, 4], "accuracy": [0.1, 0.5, 0.6, 0.7]})
    other = frame.assign(accuracy=[0.3, 0.7, np.nan, 0.9])
    ax = plt.subplots()[1]
    plots.highlight(
        ax,
        {("LN", 1): [frame, other], ("LN", 2): other},
        ("LN", 1),
        scale=100,
        look=lambda key: plots.line_style(key[0]),
        name=lambda key: f"rate {key[1]}",
    )
    chosen, grey = ax.lines
    assert (chosen.get_color(), grey.get_color()) == (plots.colour("LN"), plots.FAINT)
    assert (chosen.get_label(), grey.get_label()) == ("rate 1", "rate 2")
    np.testing.assert_allclose(chosen.get_ydata(), [20, 60, 60, 80])
    np.testing.assert_allclose(grey.get_ydata(), [30, 70, 90])
    assert len(ax.collections) == 1 and chosen.get_zorder() > grey.get_zorder()  # the spread is the chosen run's
    plots.label_lines(ax)
    assert [text.get_color() for text in ax.texts] == [plots.colour("LN"), plots.FAINT_TEXT]
    assert contrast_on_white(plots.FAINT_TEXT) >= 4.5


def test_highlight_takes_several_short_or_missing_runs():
    frame = pd.DataFrame({"round": [5, 6], "accuracy": [0.1, 0.5]})
    ax = plt.subplots()[1]
    plots.highlight(ax, {"LN": frame, "FN": frame, "BN": frame[:0]}, ["LN", "FN", "GN"])
    assert [line.get_color() for line in ax.lines] == [plots.colour("LN"), plots.colour("FN"), plots.FAINT]
    assert ax.lines[0].get_marker() == "o"  # two points make a poor line
    with pytest.raises(ValueError, match="runs must hold at least one run, got none"):
        plots.highlight(ax, {}, "LN")
    with pytest.raises(ValueError, match="run 'LN' has no column 'loss'"):
        plots.highlight(ax, {"LN": frame}, "LN", y="loss")


def test_curves_take_frames_runs_and_seeds():
    frame = pd.DataFrame({"round": [0, 1], "accuracy": [0.1, 0.5]})
    run = type("Run", (), {"history": frame})()
    ax = plots.curves({"LN": [frame, run], "FN": frame}, scale=100)
    assert [line.get_label() for line in ax.get_lines()] == ["LN", "FN"]
    assert ax.lines[0].get_ydata()[1] == pytest.approx(50)
    with pytest.raises(ValueError, match="run 'LN' has no column 'loss'; it has round, accuracy"):
        plots.curves({"LN": frame}, y="loss")
    with pytest.raises(ValueError, match="at least one label"):
        plots.curves({})


@pytest.mark.parametrize("clients", [5, 60])
def test_partition_shows_every_client(clients):
    labels = np.arange(600) % 10
    ax = plots.partition(np.array_split(np.arange(600), clients), labels, 10)
    assert ax.get_xlabel() == "client" and ax.get_ylabel() == "class"
    with pytest.raises(ValueError, match="num_classes=5, but labels go up to 9"):
        plots.partition([np.arange(600)], labels, 5)


def test_intervals_show_mean_and_ends_and_cut_off_what_reaches_too_far():
    ax = plots.intervals({"LN": [1.0, 2.0, 3.0], "one seed": [4.0]}, clip=10, xlabel="points ahead")
    lines = [line.get_xdata() for line in ax.lines]
    np.testing.assert_allclose(lines[0], [2 - 2.4841, 2 + 2.4841], rtol=1e-4)  # t of 2 degrees of freedom / sqrt(3)
    assert list(lines[1]) == [2.0] and list(lines[2]) == [-10, 10] and list(lines[3]) == [4.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LN", "one seed"] and ax.yaxis_inverted()


def test_domains_are_shown_a_strip_each_with_the_classes_in_order():
    data = fl.data.load("digit_domains", train=40)
    axes = plots.domains(data, each=1)
    assert [ax.get_ylabel() for ax in axes] == list(data.domains)
    strip = axes[2].images[0].get_array()
    first = [((data.domain_train == 2) & (data.y_train == c)).nonzero()[0, 0] for c in range(10)]
    assert strip.shape == (16, 160, 3) and (strip[:, 48:64] == data.x_train[first[3]].permute(1, 2, 0).numpy()).all()


def test_shared_statistics_move_each_domain_by_what_they_are_off():
    rng = np.random.default_rng(0)
    values = {"dark": rng.normal(-1, 1, 4000), "bright": rng.normal(3, 2, 4000)}
    left, right = plots.shared_statistics(values, mean=1.0, std=2.0).axes
    np.testing.assert_allclose([bar.lines[0].get_ydata()[0] for bar in right.containers], [-1, 1], atol=0.1)
    assert left.lines[0].get_xdata()[0] == 1.0 and len(left.patches) == 3

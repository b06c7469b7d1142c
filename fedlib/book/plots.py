"""How it looks: one figure style for the whole book.

Figures are drawn on white, so that they read in any notebook; in the book's dark mode the page inverts their lightness
and keeps their hues (``book/_static/fedbook.css``). Colours follow Okabe and Ito's for the colour-blind, darkened
where needed so that a label in its line's colour can be read on white. Every method or layer keeps its own throughout.
Lines also differ in dash and are labelled directly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from fedlib.book.bars import interval
from fedlib.data import Data
from fedlib.partition import counts

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

_Key = TypeVar("_Key", bound=Hashable)

INK, GRID = "#222222", "#d9d9d9"
FAINT, FAINT_TEXT = "#b4b4b4", "#707070"  # runs that stand behind the one that is looked at, and their names
BLACK, BLUE, RED, GREEN, PINK = "#444444", "#0072b2", "#d55e00", "#00855f", "#b8488f"
OCHRE, SLATE, VIOLET, BROWN, OLIVE, GREY = "#957300", "#64748b", "#6a51a3", "#8c564b", "#66700a", "#8a8a8a"

# One colour and one dash for each thing the book compares, whatever the chapter calls it.
_STYLES = {
    ("none", "no norm", "fedavg", "plain", "vanilla", "end to end"): (BLACK, "-"),
    ("ln-g",): (OLIVE, "-"),
    ("ln, each position",): (BLUE, "--"),
    ("ln", "layer", "fedln", "fedavg + ln"): (BLUE, "-"),
    ("fn", "feature", "fedfn", "fedavg + fn"): (RED, "-"),
    ("gn", "group", "fedgn", "fedavg + gn"): (GREEN, "--"),
    ("bn", "batch", "fedavg + bn"): (PINK, "--"),
    ("fedbn",): (PINK, ":"),
    ("silobn",): (PINK, "-."),
    ("fixbn",): (OLIVE, "-."),
    ("fedwon", "wsconv"): (BROWN, "-"),
    ("fedwon without agc",): (BROWN, "-."),
    ("fedavg + gn + agc",): (GREEN, "-."),
    ("no norm + agc",): (BLACK, "-."),
    ("standalone",): (GREY, "-"),
    ("fedyogi",): (OCHRE, "-."),
    ("fedadam",): (OLIVE, ":"),
    ("fedavgm",): (OCHRE, "--"),
    ("fedexp",): (VIOLET, "-."),
    ("fedprox",): (SLATE, "--"),
    ("scaffold",): (SLATE, "-."),
    ("fedlc",): (BROWN, "--"),
    ("fedrs",): (BROWN, ":"),
    ("feddecorr",): (OLIVE, "--"),
    ("base", "decay outside the clip"): (BLACK, "--"),
    ("nar", "fednar", "decay inside the clip"): (VIOLET, "-"),
    ("layer-wise",): (SLATE, "-"),
    ("layer-wise, equal work",): (GREEN, "-"),
    ("+ depth dropout",): (SLATE, ":"),
    ("progressive",): (RED, "-."),
    ("dropout alone",): (RED, "--"),
    ("not trained",): (GREY, "--"),
    ("no norm, scaled",): (VIOLET, "--"),
    ("centralised", "central", "pooled"): (GREY, ":"),
    ("iid",): (BLUE, "-."),
    ("dirichlet 0.3",): (GREEN, ":"),
    ("dirichlet 0.1",): (OCHRE, "-"),
    ("two classes",): (PINK, "-"),
    ("one class",): (RED, ":"),
}
_BY_NAME = {name: style for names, style in _STYLES.items() for name in names}
_OTHERS = (BLUE, RED, GREEN, OCHRE, PINK, SLATE, VIOLET, OLIVE, BROWN, BLACK)

RC: dict[RcKeyType, Any] = {
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 13,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 13,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "axes.prop_cycle": cycler(color=_OTHERS),
    "image.cmap": "cividis",
}


def use() -> None:
    """Draw everything from here on in the book's style; in a notebook also at twice the resolution."""
    mpl.rcParams.update(RC)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # no notebook
        return
    from IPython import get_ipython

    if get_ipython() is not None:
        set_matplotlib_formats("retina")


@contextmanager
def style():
    """The book's style inside a ``with`` block only."""
    with mpl.rc_context(RC):
        yield


def colour(name: str) -> str:
    """The colour that a method or layer has in the whole book; others get a fixed one made from their name."""
    return line_style(name)["color"]


def line_style(name: Hashable) -> dict[str, str]:
    """Keyword arguments for ``ax.plot``: colour and dash of a method or layer."""
    key = str(name).strip().lower()
    if key not in _BY_NAME:
        return {"color": _OTHERS[sum(key.encode()) % len(_OTHERS)], "linestyle": "-"}
    shade, dash = _BY_NAME[key]
    return {"color": shade, "linestyle": dash}


def label_lines(ax, *, gap: float = 1.15, pad: float = 0.015, **text: Any) -> None:
    """Write each line's label at its right end, in its colour, instead of a legend; labels push one another apart.

    Args:
        ax: axes whose labelled lines are finished (labels that begin with ``_`` are left out).
        gap: least distance between two labels, in line heights.
        pad: distance from the axes' right edge, in axes widths.
        **text: passed to ``ax.text``.
    """
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_") and len(line.get_xdata())]
    ends = []
    for line in lines:
        heights = np.asarray(line.get_ydata(), dtype=float)
        heights = heights[np.isfinite(heights)]
        if heights.size:
            point = ax.transData.transform((ax.get_xlim()[0], heights[-1]))
            ends.append((ax.transAxes.inverted().transform(point)[1], line))
    if not ends:
        return
    size = text.pop("fontsize", mpl.rcParams["legend.fontsize"])
    points = FontProperties(size=size).get_size_in_points()
    height = ax.figure.get_size_inches()[1] * ax.get_position().height * 72
    at = _spread(np.array([end for end, _ in ends]), gap * points / height)
    for where, (_, line) in zip(at, ends, strict=True):
        shade = FAINT_TEXT if line.get_color() == FAINT else line.get_color()
        ax.text(
            1 + pad, where, line.get_label(), color=shade, transform=ax.transAxes, va="center", fontsize=size, **text
        )


def _spread(at: np.ndarray, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Heights moved as little as their order allows so that neighbours keep ``gap`` and stay in [low, high]."""
    order = np.argsort(at, kind="stable")
    steps = gap * np.arange(len(at))
    # With z = sorted heights − steps the task is isotonic regression: pool neighbours that are out of order.
    blocks: list[list[float]] = []
    for value in np.clip(at[order], low, high) - steps:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = np.concatenate([[np.mean(block)] * len(block) for block in blocks]) + steps
    if moved[-1] > high:
        moved -= min(moved[-1] - high, max(moved[0] - low, 0))
    if moved[0] < low:
        moved += min(low - moved[0], max(high - moved[-1], 0))
    out = np.empty(len(at))
    out[order] = moved
    return out


def band(ax, x: Any, values: Any, label: str, color: str | None = None, **line: Any) -> None:
    """Mean over seeds as a line, mean ± one sample standard deviation as a band.

    Args:
        ax: axes.
        x: (points,).
        values: (seeds, points) or (points,); NaN where a run has no value.
        label: name of the line; its colour and dash follow :func:`line_style`.
        color: overrides the colour.
        **line: passed to ``ax.plot``.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    x = np.asarray(x, dtype=float)
    if values.shape[1] != x.size:
        raise ValueError(f"values must be (seeds, {x.size}) for {x.size} points, got {values.shape}")
    alive = np.isfinite(values)
    count = alive.sum(0)
    total = np.where(alive, values, 0).sum(0)
    mean = np.divide(total, count, out=np.full(x.size, np.nan), where=count > 0)
    squares = np.where(alive, (values - mean) ** 2, 0).sum(0)
    spread = np.sqrt(np.divide(squares, count - 1, out=np.zeros(x.size), where=count > 1))
    look = {**line_style(label), **({"color": color} if color else {}), **line}
    ax.plot(x, mean, label=label, **look)
    if values.shape[0] > 1:
        ax.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.18, linewidth=0)


def curves(
    runs: Mapping[str, Any],
    x: str = "round",
    y: str = "accuracy",
    *,
    ax=None,
    direct: bool = True,
    scale: float = 1.0,
    xlabel: str | None = None,
    ylabel: str | None = None,
):
    """Training curves, one line a method, mean and spread over its seeds.

    Args:
        runs: label to a Run, to a DataFrame with columns ``x`` and ``y``, or to a list of either, one a seed.
        x: column along the bottom.
        y: column shown; rows without a value are left out.
        ax: axes; default a new figure's.
        direct: label lines at their ends rather than by a legend.
        scale: factor on ``y`` (100 turns fractions into per cent).
        xlabel: words along the bottom; default ``x``.
        ylabel: words along the side; default ``y``.

    Returns:
        The axes.

    Raises:
        ValueError: no runs, or a run without one of the columns.
    """
    if not runs:
        raise ValueError("runs must hold at least one label, got none")
    ax = plt.subplots()[1] if ax is None else ax
    for label, given in runs.items():
        points, values = _by_seed(label, given, x, y)
        band(ax, points, scale * values, label)
    ax.set_xlabel(xlabel or x)
    ax.set_ylabel(ylabel or y)
    ax.margins(x=0)
    if direct:
        label_lines(ax)
    else:
        ax.legend()
    return ax


def _by_seed(label: Any, given: Any, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (P,) and values (seeds, P) of a Run, a DataFrame or a list of either; NaN where a seed has no value."""
    frames = [getattr(run, "history", run) for run in (given if isinstance(given, (list, tuple)) else [given])]
    for frame in frames:
        missing = [column for column in (x, y) if column not in frame]
        if missing:
            raise ValueError(f"run {label!r} has no column {missing[0]!r}; it has {', '.join(map(str, frame))}")
    series = [frame[[x, y]].dropna().groupby(x)[y].last() for frame in frames]
    points = sorted(set(itertools.chain.from_iterable(one.index for one in series)))
    return np.array(points), np.array([one.reindex(points).to_numpy(dtype=float) for one in series])


def intervals(values: Mapping[str, Any], *, ax=None, xlabel: str = "points", clip: float = math.inf):
    """For each name the mean of its values and the 95 % interval of that mean, as a dot on a line; zero is marked.

    Args:
        values: name to one number a seed.
        ax: axes; default a new figure's.
        xlabel: words along the bottom.
        clip: an interval that reaches further than this is cut off there.

    Returns:
        The axes, the first name on top.
    """
    ax = plt.subplots(figsize=(6.4, 0.8 + 0.35 * len(values)))[1] if ax is None else ax
    for at, (name, of_seeds) in enumerate(values.items()):
        look = line_style(name)["color"]
        ax.plot(np.clip(interval(of_seeds), -clip, clip), [at, at], color=look, linewidth=2)
        ax.plot(np.mean(of_seeds), at, "o", color=look)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(xlabel)
    return ax


def highlight(
    ax,
    runs: Mapping[_Key, Any],
    chosen: _Key | Iterable[_Key],
    x: str = "round",
    y: str = "accuracy",
    *,
    scale: float = 1.0,
    look: Callable[[_Key], Mapping[str, Any]] = line_style,
    name: Callable[[_Key], str] = str,
) -> None:
    """Curves of recorded runs: the chosen one in its colour, mean and spread over seeds, all others thin and grey.

    Lines carry their names as labels, for :func:`label_lines`; runs of one to three points show the points.

    Args:
        ax: axes.
        runs: key to a Run, to a DataFrame with columns ``x`` and ``y``, or to a list of either, one a seed.
        chosen: a key of ``runs``, or a list or set of keys; keys that ``runs`` does not have are passed over.
        x: column along the bottom.
        y: column shown.
        scale: factor on ``y`` (100 turns fractions into per cent).
        look: key to keyword arguments of ``ax.plot`` for the line where it is chosen.
        name: key to the line's label.

    Raises:
        ValueError: no runs, or a run without one of the columns.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    keys = set(chosen) if isinstance(chosen, (list, set, frozenset)) else {chosen}
    for key, given in runs.items():
        points, values = _by_seed(key, given, x, y)
        mark = {"marker": "o", "markersize": 4} if 0 < len(points) <= 3 else {}
        if key in keys:
            band(ax, points, scale * values, name(key), **{"linewidth": 2.2, "zorder": 3, **mark, **look(key)})
        else:
            alive = np.isfinite(values)
            mean = np.where(alive, values, 0).sum(0) / alive.sum(0)  # a point is there because some seed has it
            ax.plot(points, scale * mean, color=FAINT, linewidth=1, label=name(key), **mark)


def partition(
    parts: Sequence[Any],
    labels: Any,
    num_classes: int,
    *,
    ax=None,
    classes: Iterable[str] | None = None,
    color: str = BLUE,
):
    """Who holds what: clients along the bottom, classes up the side, the area of a dot is the number of examples.

    More than 40 clients are shown as a heat map of shares of each client's examples instead.

    Args:
        parts: one index tensor or array a client.
        labels: (N,) class of each example.
        num_classes: number of classes C.
        ax: axes; default a new figure's.
        classes: names of the classes; default their numbers.
        color: of the dots.

    Returns:
        The axes.
    """
    if not len(parts):
        raise ValueError("parts must hold at least one client, got none")
    held = counts(parts, labels, num_classes).numpy()
    ax = plt.subplots(figsize=(6.4, 0.6 + 0.28 * max(num_classes, 8)))[1] if ax is None else ax
    clients = len(parts)
    if clients <= 40:
        who, what = np.nonzero(held)
        side = min(5.2 / clients, 0.25) * 72  # points between two dots
        ax.scatter(who, what, s=held[who, what] / held.max() * (0.95 * side) ** 2, color=color, linewidth=0)
        ax.set_xlim(-0.7, clients - 0.3)
        ax.set_ylim(-0.7, num_classes - 0.3)
    else:
        shares = held / held.sum(1, keepdims=True).clip(min=1)
        image = ax.imshow(
            shares.T, aspect="auto", origin="lower", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
        )
        ax.figure.colorbar(image, ax=ax, label="share of the client's examples")
        ax.grid(False)
    ax.set_xlabel("client")
    ax.set_ylabel("class")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if num_classes <= 20:
        names = list(classes) if classes is not None else [str(c) for c in range(num_classes)]
        ax.set_yticks(range(num_classes), names)
    return ax


def domains(data: Data, each: int = 2):
    """Training images of every class in every domain, a strip for each domain.

    Args:
        data: with domains.
        each: images of a class.

    Returns:
        The axes, one a domain.
    """
    _, axes = plt.subplots(len(data.domains), 1, figsize=(6.4, 0.1 + 0.4 * len(data.domains)))
    for d, (ax, domain) in enumerate(zip(np.atleast_1d(axes), data.domains, strict=True)):
        here = [torch.nonzero((data.domain_train == d) & (data.y_train == c)) for c in range(data.num_classes)]
        some = torch.cat([of_class[:each, 0] for of_class in here])
        ax.imshow(torch.cat([data.x_train[i].permute(1, 2, 0) for i in some], dim=1).numpy())
        ax.set_ylabel(domain, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(False)
    return axes


def shared_statistics(values: Mapping[str, Any], mean: float, std: float):
    """One channel as it enters a batch norm on each domain, and what an averaged mean and deviation make of it.

    Args:
        values: domain to the values of the channel, in one dimension.
        mean, std: the averaged statistics.

    Returns:
        The figure: the values with the averaged statistics over them; each domain's mean ± deviation once normalised.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3.4), width_ratios=(1.5, 1))
    low, high = np.percentile(np.concatenate([*values.values()]), (0.5, 99.5))
    edges = np.linspace(low, high, 60)
    for at, (domain, shade) in enumerate(zip(values, _OTHERS, strict=False)):
        of_domain = np.asarray(values[domain])
        left.hist(of_domain, edges, density=True, histtype="step", color=shade, label=domain, linewidth=1.6)
        normalised = (of_domain - mean) / std
        right.errorbar(at, normalised.mean(), normalised.std(), fmt="o", color=shade, linewidth=2, capsize=4)
    left.axvspan(mean - std, mean + std, color=GREY, alpha=0.2, linewidth=0)
    left.axvline(mean, color=INK, linewidth=1.4)
    left.set(yticks=[], xlabel="value of the channel", title="as it arrives")
    right.axhspan(-1, 1, color=GREY, alpha=0.2, linewidth=0)
    right.axhline(0, color=INK, linewidth=1.4)
    right.set(xticks=[], title="normalised", ylabel="mean ± deviation")
    right.grid(axis="x", visible=False)
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(values))
    return fig

"""How a reader plays: explorers that stay alive on a static page.

:func:`explore` draws one picture for every combination of a few settings and links sliders and menus to them in the
browser, so that nothing has to run behind the page. In a notebook it is the same widget. Where ipywidgets is too old
for that (Colab has 7.7), the pictures are drawn when asked for.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w
import matplotlib.pyplot as plt
from IPython.display import display
from PIL import Image, features

from fedlib.book import plots
from fedlib.checks import is_number

MAX_FRAMES = 30
_DPI = 125  # 800 pixels for a figure of 6.4 inches: sharp on a phone, small enough to embed thirty times
_COLOURS = 48  # a drawing has few; more are the shades of its edges


def encode(figure) -> tuple[str, bytes]:
    """A matplotlib figure as the smallest of lossless WebP, lossy WebP and PNG, the lossless ones with few colours.

    Returns:
        (mime type, bytes).
    """
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=_DPI, facecolor="white")
    image = Image.open(raw).convert("RGB")
    flat = image.quantize(_COLOURS)
    tries = [("image/png", flat, {"format": "PNG", "optimize": True})]
    if features.check("webp"):
        tries += [
            ("image/webp", flat.convert("RGB"), {"format": "WEBP", "lossless": True, "method": 4}),
            ("image/webp", image, {"format": "WEBP", "quality": 80, "method": 4}),
        ]
    encoded = []
    for mime, picture, options in tries:
        out = io.BytesIO()
        picture.save(out, **options)
        encoded.append((mime, out.getvalue()))
    return min(encoded, key=lambda pair: len(pair[1]))


def explore(
    draw: Callable[..., Any],
    *,
    alt: str | Callable[..., str],
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, Any] | None = None,
    ordered: Sequence[str] = (),
    max_frames: int = MAX_FRAMES,
    live: bool | None = None,
    **grid: Sequence[Any],
) -> Explorer:
    """An explorer of ``draw`` over a grid of settings; the last line of a cell shows it.

    Args:
        draw: called as ``draw(**setting)``; returns a matplotlib figure, or None to use the current one.
        alt: what the picture shows, for those who cannot see it: a text, to which the setting is added, or a function
            of the setting that returns the whole text.
        labels: parameter name to the words beside its control; default the name.
        start: setting shown first; default the first value of each parameter.
        ordered: parameters that get a slider though their values are no numbers.
        max_frames: refuse larger grids, since every frame travels with the page.
        live: True draws on demand and needs a kernel; default only where ipywidgets cannot hold the frames.
        **grid: parameter name to its values in order. Numbers get a slider, other values a menu.

    Returns:
        An :class:`Explorer`.

    Raises:
        ValueError: empty grid, a parameter without values or with the same value twice, too many frames, a start, a
            label or an order of an unknown parameter or value, or an empty ``alt``.
        Exception: what ``draw`` raised, if it raised for every setting; for some settings the frame says so instead.
    """
    grid = {name: list(values) for name, values in grid.items()}
    labels, start = dict(labels or {}), dict(start or {})
    _check(grid, labels, start, ordered, alt, max_frames)
    live = not hasattr(w, "Stack") if live is None else live
    return Explorer(draw, alt, labels, start, ordered, live, grid)


def explore_runs(
    runs: Mapping[tuple, Mapping[str, Any]],
    names: Sequence[str],
    words: Callable[..., str],
    *,
    among: str,
    x: str = "round",
    y: str = "accuracy",
    scale: float = 1.0,
    xlabel: str | None = None,
    ylabel: str | None = None,
    ylim: tuple[float, float] | None = None,
    **options: Any,
) -> Explorer:
    """An explorer of recorded runs: the chosen setting's curves in their colours, those of its neighbours in grey.

    Args:
        runs: setting, as a tuple with one value for each of ``names``, to its curves: label to a Run, to a DataFrame
            with columns ``x`` and ``y``, or to a list of either, one a seed. A label has the same colour in every
            frame (:func:`fedlib.book.plots.line_style`). Settings that are missing show grey lines only.
        names: the parameters, in the order of their controls.
        words: function of the setting: what the frame shows, for its title and its alt text.
        among: the parameter whose other values are shown in grey.
        x: column along the bottom.
        y: column shown.
        scale: factor on ``y`` (100 turns fractions into per cent).
        xlabel: words along the bottom; default ``x``.
        ylabel: words along the side; default ``y``.
        ylim: limits of the vertical axis.
        **options: ``labels``, ``start``, ``ordered``, ``max_frames``, ``live`` of :func:`explore`.

    Returns:
        An :class:`Explorer`; numbers on its sliders are in rising order.

    Raises:
        ValueError: no runs, a setting with another number of values than ``names``, an unknown ``among``, and
            whatever :func:`explore` refuses.
    """
    if not runs:
        raise ValueError("runs must hold at least one setting, got none")
    wrong = next((key for key in runs if not isinstance(key, tuple) or len(key) != len(names)), None)
    if wrong is not None:
        raise ValueError(f"a setting must be a tuple of {len(names)} values ({', '.join(names)}), got {wrong!r}")
    if among not in names:
        raise ValueError(f"among must be one of {', '.join(names)}, got {among!r}")
    xlabel, ylabel, place = xlabel or x, ylabel or y, list(names).index(among)

    def draw(**setting):
        key = tuple(setting[name] for name in names)
        near = {
            (other, label): run
            for other, curves in runs.items()
            for label, run in curves.items()
            if other[:place] + other[place + 1 :] == key[:place] + key[place + 1 :]
        }
        figure, ax = plt.subplots(figsize=(6.4, 3.6))
        chosen = [pair for pair in near if pair[0] == key]
        if near:
            plots.highlight(
                ax,
                near,
                chosen,
                x,
                y,
                scale=scale,
                look=lambda pair: plots.line_style(pair[1]),
                name=lambda pair: pair[1] if pair[0] == key else "_",
            )
        ax.set(xlabel=xlabel, ylabel=ylabel, ylim=ylim, title=words(**setting))
        ax.margins(x=0)
        plots.label_lines(ax)
        return figure

    grid: dict[str, Any] = {}
    for i, name in enumerate(names):
        values = list(dict.fromkeys(key[i] for key in runs))
        grid[name] = sorted(values) if all(map(is_number, values)) else values
    return explore(draw, alt=lambda **setting: f"{ylabel} against {xlabel}: {words(**setting)}.", **options, **grid)


def _check(grid, labels, start, ordered, alt, max_frames):
    if not grid:
        raise ValueError("explore needs at least one parameter with its values, got none")
    for name, values in grid.items():
        if not values:
            raise ValueError(f"parameter {name!r} needs at least one value, got none")
        if any(a == b for a, b in itertools.combinations(values, 2)):
            raise ValueError(f"values of parameter {name!r} must differ, got {values}")
    frames = math.prod(len(values) for values in grid.values())
    if frames > max_frames:
        sizes = " × ".join(f"{len(values)} {name}" for name, values in grid.items())
        raise ValueError(f"{sizes} = {frames} frames, but at most {max_frames} are allowed: give fewer values")
    for what, given in (("labels", labels), ("start", start), ("ordered", ordered)):
        unknown = set(given) - set(grid)
        if unknown:
            raise ValueError(f"{what} names unknown parameters {sorted(unknown)}; known: {', '.join(grid)}")
    for name, value in start.items():
        if value not in grid[name]:
            raise ValueError(f"start of {name!r} must be one of {grid[name]}, got {value!r}")
    if not callable(alt) and not str(alt).strip():
        raise ValueError("alt must say what the picture shows, got an empty text")


class Explorer:
    """Frames with their controls; displays itself in a notebook and on the built page.

    Attributes:
        settings: list of dicts, one a frame, the last parameter moving fastest.
        frames: list of HTML texts, one a frame (None where not drawn yet).
        widget: the ipywidget.
    """

    def __init__(
        self,
        draw: Callable[..., Any],
        alt: str | Callable[..., str],
        labels: Mapping[str, str],
        start: Mapping[str, Any],
        ordered: Sequence[str],
        live: bool,
        grid: Mapping[str, Sequence[Any]],
    ):
        self.draw, self.alt, self.grid, self.ordered = draw, alt, grid, ordered
        self.labels = {name: labels.get(name, name) for name in grid}
        self.settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        self.frames: list[str | None] = [None] * len(self.settings)
        self.first = self.settings.index({name: start.get(name, values[0]) for name, values in grid.items()})
        self._pictures: dict[int, bytes] = {}
        self._errors: list[Exception] = []
        if live:
            self._frame(self.first)
        else:
            for index in range(len(self.settings)):
                self._frame(index)
            if len(self._errors) == len(self.settings):
                raise self._errors[-1]
        self.widget = self._live() if live else self._linked()

    # ---- frames

    def _words(self, setting: Mapping[str, Any]) -> str:
        return ", ".join(f"{self.labels[name]} {_show(value)}" for name, value in setting.items())

    def _frame(self, index: int) -> str:
        """The frame's HTML, drawn on first use; a draw that raises gives a frame that says so."""
        frame = self.frames[index]
        if frame is None:
            setting = self.settings[index]
            try:
                frame = self._picture(index, setting)
            except Exception as error:  # noqa: BLE001 - whatever a draw function raises belongs in its frame
                self._errors.append(error)
                message = html.escape(f"Nothing to show for {self._words(setting)}: {type(error).__name__}: {error}")
                frame = f'<p class="explore-error" role="note">{message}</p>'
            self.frames[index] = frame
        return frame

    def _picture(self, index: int, setting: Mapping[str, Any]) -> str:
        opened = set(plt.get_fignums())
        try:
            drawn = self.draw(**setting)
            figure = plt.gcf() if drawn is None else getattr(drawn, "figure", drawn)
            if not hasattr(figure, "savefig"):
                raise TypeError(f"draw must return a matplotlib figure or None, got {type(drawn).__name__}")
            mime, data = encode(figure)
            if index == self.first:
                png = io.BytesIO()
                figure.savefig(png, format="png", dpi=_DPI, facecolor="white")
                self._pictures[index] = png.getvalue()
            width, height = (round(side * _DPI) for side in figure.get_size_inches())
        finally:
            for number in set(plt.get_fignums()) - opened:
                plt.close(number)
        text = self.alt(**setting) if callable(self.alt) else f"{self.alt} Setting: {self._words(setting)}."
        source = base64.b64encode(data).decode()
        return (
            f'<img class="explore-frame" alt="{html.escape(text, quote=True)}" width="{width}" height="{height}" '
            f'style="width:100%;max-width:640px;height:auto" src="data:{mime};base64,{source}">'
        )

    # ---- widgets

    def _controls(self) -> list:
        controls = []
        for name, values in self.grid.items():
            number = all(map(is_number, values))
            kind = w.SelectionSlider if (number or name in self.ordered) and len(values) > 1 else w.Dropdown
            options = [(_show(value), index) for index, value in enumerate(values)]
            at = values.index(self.settings[self.first][name])
            extra = {"continuous_update": True} if kind is w.SelectionSlider else {}
            controls.append(
                kind(
                    options=options,
                    index=at,
                    description=self.labels[name],
                    style={"description_width": "initial"},
                    layout=w.Layout(width="auto"),
                    **extra,
                )
            )
        return controls

    def _linked(self):
        """Stacks of frames, one level a parameter, each level's selected index linked to its control in the browser."""
        controls = self._controls()
        level = [w.HTML(frame) for frame in self.frames]
        for control, values in zip(reversed(controls), reversed(list(self.grid.values())), strict=True):
            size = len(values)
            level = [w.Stack(level[i : i + size], selected_index=control.index) for i in range(0, len(level), size)]
            for stack in level:
                w.jslink((control, "index"), (stack, "selected_index"))
        return self._box(controls, level[0])

    def _live(self):
        """One frame that a kernel exchanges; needs nothing newer than ipywidgets 7."""
        controls = self._controls()
        picture = w.HTML(self._frame(self.first))
        sizes = [len(values) for values in self.grid.values()]

        def update(_):
            index = 0
            for control, size in zip(controls, sizes, strict=True):
                index = index * size + control.index
            picture.value = self._frame(index)

        for control in controls:
            control.observe(update, "index")
        return self._box(controls, picture)

    @staticmethod
    def _box(controls, picture):
        box = w.VBox([w.VBox(controls), picture])
        box.add_class("explore")
        return box

    # ---- display

    def _ipython_display_(self):
        bundle = {
            "text/plain": f"Explorer of {', '.join(self.labels.values())}",
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.widget.model_id,
            },
        }
        if self.first in self._pictures:  # for PDF and GitHub, which cannot show the widget
            bundle["image/png"] = base64.b64encode(self._pictures[self.first]).decode()
        display(bundle, raw=True)


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Pictures that the book draws and that measure nothing: what the words are about, before any number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from fedlib.book.construct import Step
from fedlib.book.plots import BLUE, GREEN, GREY, INK, OCHRE, RED

CLIENTS = (  # where each stands, how many examples of the classes a to d it holds, whether it is in the cohort
    (1.4, (5, 1, 0, 0), True),
    (5.0, (1, 0, 4, 1), True),
    (8.6, (0, 3, 1, 5), False),
)


def federation():
    """One round: a server above three clients, two of them in the cohort. Returns the axes."""
    _, ax = plt.subplots(figsize=(6.4, 4.6))
    _box(ax, 5, 6.3, 4.4, 1.3, INK)
    _write(ax, 5, 6.55, "server", fontsize=13, weight="bold")
    _write(ax, 5, 6.05, r"④  $w \leftarrow \sum_k p_k w_k$")
    for k, (x, held, there) in enumerate(CLIENTS, start=1):
        _client(ax, k, x, held, there)
        if there:
            middle = 5 + 0.28 * (x - 5)
            _arrow(ax, (middle - 0.3, 5.6), (x - 0.45, 2.98), BLUE)
            _arrow(ax, (x + 0.45, 2.98), (middle + 0.3, 5.6), RED)
    _write(ax, 0.55, 4.75, "① the server\nsends $w$", BLUE, ha="left")
    _write(ax, 5.65, 4.25, "③ the clients\nsend back $w_k$", RED, ha="left")
    ax.set(xlim=(0, 10), ylim=(0.1, 7.1))
    ax.axis("off")
    return ax


def _client(ax, k: int, x: float, held: Sequence[int], there: bool) -> None:
    shade = INK if there else GREY
    _box(ax, x, 1.55, 2.6, 2.7, shade)
    _write(ax, x, 2.6, f"client {k}", shade, fontsize=13, weight="bold")
    _write(ax, x, 2.1, f"② local steps → $w_{k}$" if there else "not in this round", shade, fontsize=12)
    for c, height in enumerate(held):
        at = x - 0.72 + 0.48 * c
        ax.bar(at, height * 0.2, width=0.36, bottom=0.75, color=shade, alpha=0.75)
        _write(ax, at, 0.6, "abcd"[c], shade, fontsize=12, va="top")


def _box(ax, x: float, y: float, width: float, height: float, color: str) -> None:
    corner, rounded = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.12"
    ax.add_patch(
        FancyBboxPatch(corner, width, height, facecolor="white", edgecolor=color, linewidth=2, boxstyle=rounded)
    )


def _arrow(ax, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    look = dict(arrowstyle="-|>", mutation_scale=16, linewidth=2, color=color, connectionstyle="arc3,rad=0.08")
    ax.annotate("", end, start, arrowprops=look)


def _write(ax, x: float, y: float, text: str, color: str = INK, **look: Any) -> None:
    ax.text(x, y, text, color=color, **{"ha": "center", "va": "center", "fontsize": 13, **look})


def bowls(
    ax, H: Sequence[np.ndarray], a: Sequence[np.ndarray], best: np.ndarray, server: np.ndarray, paths: np.ndarray
):
    """Two clients with quadratic losses in the plane, their local steps, and where the server goes.

    Args:
        ax: axes to draw on.
        H, a: of each client the matrix (2, 2) of its bowl and the lowest point (2,).
        best: (2,), the lowest point of the mean of both.
        server: (rounds + 1, 2), where the server stands after each round.
        paths: (rounds, 2, steps + 1, 2), the clients' local steps.
    """
    grid = np.stack(np.meshgrid(np.linspace(-2.6, 2.6, 120), np.linspace(-1.2, 2.5, 100)), axis=-1)
    for k, color in enumerate((BLUE, GREEN)):
        d = grid - a[k]
        height = 0.5 * np.einsum("...i,ij,...j", d, H[k], d)
        look = {"colors": color, "alpha": 0.3, "linewidths": 1}
        ax.contour(grid[..., 0], grid[..., 1], height, levels=[0.1, 0.4, 1.0], **look)
        for path in paths[:, k]:
            ax.plot(*path.T, color=color, linewidth=1.4)
        ax.plot(*a[k], "o", color=color)
        _label(ax, f"$a_{k + 1}$", a[k], (0, -15), color, ha="center")
    ax.plot(*server.T, "o", color=INK, markersize=4)
    _label(ax, "start", server[0], (7, 0), INK, va="center")
    ax.plot(*best, "*", color=OCHRE, markersize=17, markeredgecolor="white", zorder=5)
    _label(ax, r"$\theta^\star$", best, (0, -20), OCHRE, ha="center")
    ax.set(xlim=(-2.6, 2.6), ylim=(-1.2, 2.5), xticks=[], yticks=[], aspect="equal")
    ax.grid(False)


def fold(before: Tensor, labels: Tensor, step: Step):
    """What one LN layer of a constructed classifier does: the line before, the half circle, the line after.

    Args:
        before: (m,), the points on the line before.
        labels: (m,), of two classes.
        step: of `fedlib.book.construct.steps`.

    Returns:
        The figure.
    """
    fig, axes = plt.subplots(3, 1, figsize=(6.4, 4.6), height_ratios=(0.7, 3, 0.7))
    turn = np.linspace(0, np.pi, 100)
    axes[1].plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=0.8)
    axes[1].plot(*(1.15 * np.array([[0, 0], step.axis])).T, color=INK, linewidth=1.2)
    axes[1].set(xlim=(-1.6, 1.6), ylim=(-0.05, 1.25), aspect="equal")
    for ax, line, title in ((axes[0], before, "the line before"), (axes[2], step.line, "the line after")):
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        ax.set_title(title)
        _scattered(ax, np.stack([line, 0 * line], axis=1), labels)
    _scattered(axes[1], step.circle.numpy(), labels)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


def _scattered(ax, points: np.ndarray, labels: Tensor) -> None:
    for c, (color, marker) in enumerate(((BLUE, "o"), (RED, "s"))):
        ax.scatter(*points[labels.numpy() == c].T, color=color, marker=marker, s=45, alpha=0.8)


def _label(ax, text: str, at: np.ndarray, away: tuple[int, int], color: str, **placed: Any) -> None:
    ax.annotate(text, at, xytext=away, textcoords="offset points", color=color, **placed)

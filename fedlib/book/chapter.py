"""What every chapter does around its experiments: check its parameters, show its sources, tables and verdicts.

papermill injects any name it is given, also a misspelt one, and only warns. A chapter therefore calls :func:`begin` at
the end of its set-up cell and :func:`check_parameters` right after its ``parameters`` cell; whatever has appeared in
between is a parameter and must be declared.
"""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from IPython.display import Markdown, display
from pandas.io.formats.style import Styler

from fedlib import checks
from fedlib.book.claims import MARKS, PRESETS, Claim, load_results, provenance, typeset
from fedlib.workers import cores

_SNAPSHOT = "_fedlib_begin"
_WHERE = {"save", "checkpoints"}  # parameters that say where things go, not what comes out
_IPYTHON = re.compile(r"_i{0,3}|__+|_i?\d+|_[di]?h|_oh|In|Out|exit|quit|get_ipython|_exit_code|__\w+__|_fedlib_begin")


@dataclass(frozen=True)
class Accept:
    """What a parameter may be: a test and the words for it."""

    test: Callable[[Any], bool]
    says: str


def integer(low: int | None = None, high: int | None = None) -> Accept:
    """A whole number in [low, high]; no booleans."""
    return Accept(lambda v: checks.is_whole(v) and _inside(v, low, high), "a whole number" + _range(low, high))


def real(low: float | None = None, high: float | None = None, above: float | None = None) -> Accept:
    """A finite number in [low, high], greater than ``above``; whole numbers too, no booleans."""

    def test(v: Any) -> bool:
        finite = checks.is_number(v) and math.isfinite(v)
        return finite and _inside(v, low, high) and (above is None or v > above)

    return Accept(test, "a finite number" + (f" above {above}" if above is not None else "") + _range(low, high))


def many(item: Any) -> Accept:
    """A non-empty list whose every item is accepted."""
    item = accept(item)
    return Accept(
        lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(item.test(i) for i in v),
        f"a list, not empty, each of {item.says}",
    )


def some(options: Collection[str]) -> Accept:
    """A list of these words, each or none of them."""
    return Accept(
        lambda v: isinstance(v, (list, tuple)) and all(i in options for i in v), "a list of " + ", ".join(options)
    )


def optional(item: Any) -> Accept:
    """None, or what ``item`` accepts."""
    item = accept(item)
    return Accept(lambda v: v is None or item.test(v), f"None or {item.says}")


def accept(spec: Any) -> Accept:
    """Read a declaration: an :class:`Accept`, a type, or a collection of allowed values."""
    if isinstance(spec, Accept):
        return spec
    if spec is int:
        return integer()
    if spec is float:
        return real()
    if isinstance(spec, type):
        return Accept(lambda v: isinstance(v, spec), f"a {spec.__name__}")
    if isinstance(spec, Collection) and not isinstance(spec, (str, bytes)):
        allowed = list(spec)
        return Accept(
            lambda v: any(type(v) is type(a) and v == a for a in allowed),
            "one of " + ", ".join(repr(a) for a in allowed),
        )
    raise TypeError(f"a parameter is declared by a type, a collection of values or an Accept, got {spec!r}")


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" of at least {low}" if low is not None else f" of at most {high}" if high is not None else ""


def begin(namespace: dict[str, Any]) -> None:
    """Remember which names exist before the ``parameters`` cell; pass ``globals()``, last in the set-up cell."""
    namespace[_SNAPSHOT] = {name: value for name, value in namespace.items() if not _IPYTHON.fullmatch(name)}


def check_parameters(namespace: dict[str, Any], *, chapter: str, params: str | Path = "params", **declared: Any) -> str:
    """Refuse parameters that the chapter does not know or cannot take; pass ``globals()``.

    Args:
        namespace: the notebook's names, :func:`begin` having seen them before the ``parameters`` cell.
        chapter: name of the notebook without its ending, to find its preset files.
        params: folder of the preset files ``CHAPTER.PRESET.yaml``.
        **declared: every parameter with what it accepts: a type, a collection of values, or
            :func:`integer`, :func:`real`, :func:`many`, :func:`optional`. ``preset`` must be among them.

    Returns:
        The name to save results under: the preset, or ``"custom"`` where any value differs from the preset's file
        (``save`` and ``checkpoints`` aside: they do not change a result).

    Raises:
        ValueError: an undeclared parameter (with the nearest known name), a missing one, or a value that is not
            accepted (with the parameter, the value and what is accepted).
        RuntimeError: :func:`begin` was not called.
    """
    if _SNAPSHOT not in namespace:
        raise RuntimeError("call begin(globals()) at the end of the set-up cell, before the parameters cell")
    before = namespace[_SNAPSHOT]
    for name, value in namespace.items():
        if _IPYTHON.fullmatch(name) or name in declared or (name in before and before[name] is value):
            continue
        hint = checks.hint(name, declared) or f" Known parameters: {', '.join(sorted(declared))}"
        raise ValueError(f"unknown parameter {name!r} = {value!r}.{hint}")
    for name, spec in declared.items():
        if name not in namespace:
            raise ValueError(f"parameter {name!r} is declared but has no default in the parameters cell")
        wanted = accept(spec)
        if not wanted.test(namespace[name]):
            raise ValueError(f"parameter {name!r} must be {wanted.says}, got {namespace[name]!r}")
    return _label({name: namespace[name] for name in declared}, chapter, Path(params))


def _label(values: Mapping[str, Any], chapter: str, params: Path) -> str:
    """The preset's name if its file says what ``values`` say or is not there (Colab has one file), else ``custom``."""
    preset = values["preset"]
    file = params / f"{chapter}.{preset}.yaml"
    if not file.exists():
        return preset
    wanted = yaml.safe_load(file.read_text(encoding="utf-8"))
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    same = all(name in given and given[name] == value for name, value in wanted.items() if name not in _WHERE)
    return preset if same else "custom"


# ---------------------------------------------------------------- what a page shows


def show_source(*things: Any) -> None:
    """Show the source of functions and classes as it stands in fedlib, without docstrings."""
    sources = [re.sub(r'(?ms)^ +""".*?"""\n\n?', "", inspect.getsource(thing)).rstrip() for thing in things]
    display(Markdown("```python\n" + "\n\n\n".join(sources) + "\n```"))


def glue(name: str, text: Any) -> None:
    """Store a result under a name that the text of the page can refer to, as ``myst_nb.glue`` does.

    ``name`` is unique in the book; the text has ``{glue:text}`` and the name.
    """
    display({"text/plain": typeset(str(text))}, metadata={"scrapbook": {"name": name, "mime_prefix": ""}}, raw=True)


def not_run(preset: str) -> None:
    """Say in the place of a section's results that the preset leaves it out."""
    display(Markdown(f"*The preset `{preset}` does not run this section.*"))


def recorded(chapter: str, results: str | Path = "results") -> dict[str, dict]:
    """What the larger presets of a chapter gave, by preset; shows for each where it comes from, or that it was not run.

    Hand-picked settings (``custom``) are nobody's record and are left out.
    """
    there = load_results(results).get(chapter, {})
    presets = [preset for preset in PRESETS if preset != "quick"]
    display(
        Markdown(
            "\n".join(
                f"- `{preset}`: {provenance(there[preset]) if preset in there else 'not run'}" for preset in presets
            )
        )
    )
    return {preset: there[preset] for preset in presets if preset in there}


def wall_time(started: float, trained: float) -> float:
    """Seconds that a chapter took which began at the time ``started``.

    Args:
        trained: seconds of all its sweeps. A chapter that continues from checkpoints trained before it started; it then
            took at least as long as these sweeps take side by side.
    """
    return max(time.time() - started, trained / (1 if torch.cuda.is_available() else cores()))


def table(frame: pd.DataFrame, digits: int = 1, signed: Sequence[str] = (), caption: str | None = None) -> Styler:
    """A small table: numbers with ``digits`` decimals, those of the columns in ``signed`` with their sign."""

    def number(sign: str) -> Callable[[float], str]:
        def form(value: float) -> str:
            text = f"{value:{sign}.{digits}f}"
            return typeset(text) if float(text) else text.lstrip("+-")  # a rounded zero has no sign

        return form

    forms = {column: number("+" if column in signed else "") for column in frame.select_dtypes("number").columns}
    forms |= {
        column: lambda value: typeset(value) if isinstance(value, str) else value
        for column in frame.columns
        if column not in forms
    }
    styled = frame.style.set_table_attributes('class="dataframe"')
    styled.format(forms, na_rep="–")
    return styled.set_caption(caption) if caption else styled


@dataclass
class Verdicts:
    """The claims of a chapter, in the order in which it judges them."""

    chapter: str
    claims: list[Claim] = field(default_factory=list)

    def judge(self, id: str, statement: str, paper: str, measured: str | float, verdict: str) -> None:
        """Add a claim (see :class:`fedlib.book.claims.Claim`) and show it."""
        self.claims.append(Claim(id, self.chapter, statement, paper, measured, verdict))
        here = typeset(measured) if isinstance(measured, str) else f"{measured:.4g}"
        kind = verdict.replace(" ", "-")
        display(
            Markdown(
                f'<div class="claim {kind}">\n\n**Claim.** {typeset(statement)}\n\n*Paper:* {typeset(paper)}. '
                f'*Here:* {here}. <span class="verdict {kind}">{MARKS[verdict]} {verdict}</span>\n\n</div>'
            )
        )

    def table(self) -> Styler:
        """All claims, paper beside ours, each verdict in its colour."""
        frame = pd.DataFrame(
            [
                {
                    "claim": one.statement,
                    "paper": one.paper,
                    "here": one.measured,
                    "verdict": f"{MARKS[one.verdict]} {one.verdict}",
                }
                for one in self.claims
            ]
        )
        kinds = pd.DataFrame({"verdict": ["verdict " + one.verdict.replace(" ", "-") for one in self.claims]})
        return table(frame).hide(axis="index").set_table_attributes('class="dataframe claims"').set_td_classes(kinds)

    def expect(self, verdicts: Mapping[str, str | tuple[str, ...]]) -> None:
        """Stop the notebook unless these claims were given these verdicts, in either direction.

        Args:
            verdicts: claim to its verdict, or to several where the measurement lies so close to a threshold that
                another processor's rounding can carry it over.

        Raises:
            AssertionError: a verdict differs or a claim was not judged; the message names it with its measurement.
        """
        found, differ = {one.id: one for one in self.claims}, []
        for id, verdict in verdicts.items():
            accepted = (verdict,) if isinstance(verdict, str) else verdict
            if id not in found or found[id].verdict not in accepted:
                got = f"{found[id].verdict} ({found[id].measured})" if id in found else "not judged"
                differ.append(f"{id}: {got}, expected {' or '.join(accepted)}")
        assert not differ, "; ".join(differ)

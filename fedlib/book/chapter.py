"""What every chapter does around its experiments: check its parameters, show its sources, tables and verdicts.

papermill injects any name it is given, also a misspelt one, and only warns. A chapter therefore calls :func:`begin` at
the end of its set-up cell and :func:`check_parameters` right after its ``parameters`` cell; whatever has appeared in
between is a parameter and must be declared.
"""

from __future__ import annotations

import html
import inspect
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml
from IPython.display import Markdown, display
from pandas.io.formats.style import Styler

from fedlib import checks
from fedlib.book import plots
from fedlib.book.bars import interval
from fedlib.book.claims import (
    MARKS,
    PRESETS,
    Claim,
    book_folders,
    load_results,
    mean_std,
    measured,
    preset_values,
    provenance,
    typeset,
)
from fedlib.book.claims import preset as preset  # for readers: fl.chapter.preset
from fedlib.book.record import Checkpoints, Record, written
from fedlib.experiment import Row
from fedlib.workers import cores

_SNAPSHOT, _CHECKED = "_fedlib_begin", "_fedlib_checked"
_WHERE = {"save", "checkpoints"}  # parameters that say where things go, not what comes out
# and those that say which sweeps there are, or how many clients fit in memory, but not what a sweep gives
_CHOICES = {"preset", "sections", "methods", "paper_lr_methods", "chunk"}
# names that IPython, papermill (--inject-paths) and this module put beside the parameters
_IPYTHON = re.compile(
    r"_i{0,3}|__+|_i?\d+|_[di]?h|_oh|In|Out|exit|quit|get_ipython|_exit_code|__\w+__|_fedlib_\w+|PAPERMILL_\w+_PATH"
)


@dataclass(frozen=True)
class Accept:
    """What a parameter may be: a test and the words for it."""

    test: Callable[[Any], bool]
    says: str
    among: tuple[str, ...] = ()  # the words it may be, for a hint at the nearest

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, to stand after the parameter's name; None where it is accepted."""
        if self.test(value):
            return None
        meant = _meant(value)
        if type(meant) is not type(value) or meant != value:
            hint = f". To YAML that is text: write {_yaml(meant)}" if self.test(meant) else ""
        else:
            near = checks.hint(value, self.among) if isinstance(value, str) else ""
            hint = f".{near}" if near else ""
        return f" must be {self.says}, got {value!r}{hint}"


@dataclass(frozen=True)
class Keyed(Accept):
    """A dict whose keys are declared, too; see :func:`keyed`."""

    keys: Mapping[str, Accept] = field(default_factory=dict)
    fill: bool = True
    needs: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        if not isinstance(value, dict):  # None, where it is optional, or something else
            return super().problem(value)
        for key, item in value.items():
            if key not in self.keys:
                hint = checks.hint(key, self.keys) or f" Known keys: {', '.join(self.keys)}"
                return f": unknown key {key!r}.{hint}"
            if problem := self.keys[key].problem(item):
                return f": {key}{problem}"
        missing = [key for key in (self.keys if self.fill else self.needs) if key not in value]
        return f": {missing[0]} is missing" if missing else None


def integer(low: int | None = None, high: int | None = None) -> Accept:
    """A whole number in [low, high]; no booleans."""
    return Accept(lambda v: checks.is_whole(v) and _inside(v, low, high), "a whole number" + _range(low, high))


def real(low: float | None = None, high: float | None = None, above: float | None = None) -> Accept:
    """A finite number in [low, high], greater than ``above``; whole numbers too, no booleans."""

    def test(v: Any) -> bool:
        finite = checks.is_number(v) and math.isfinite(v)
        return finite and _inside(v, low, high) and (above is None or v > above)

    return Accept(test, "a finite number" + (f" above {above}" if above is not None else "") + _range(low, high))


def keyed(keys: Mapping[str, Any], fill: bool = True, needs: Collection[str] = ()) -> Accept:
    """A dict, declared key by key.

    Args:
        keys: each key that is known, with what its value may be.
        fill: a key that is not given keeps the value it has in the *quick* preset. False: which keys are given means
            something, and nothing is filled in.
        needs: with ``fill=False``, keys that must be there.
    """
    known = {key: accept(item) for key, item in keys.items()}

    def test(value: Any) -> bool:
        return isinstance(value, dict) and wanted.problem(value) is None

    wanted = Keyed(test, f"a dict with {', '.join(known)}", (), known, fill, tuple(needs))
    return wanted


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
    """None, or what ``item`` accepts; no text that means None, which would be a folder of that name."""
    item = accept(item)

    def test(v: Any) -> bool:
        return v is None or _meant(v) is not None and item.test(v)

    if isinstance(item, Keyed):
        return replace(item, test=test, says=f"None or {item.says}")
    return Accept(test, f"None or {item.says}", item.among)


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
            tuple(a for a in allowed if isinstance(a, str)),
        )
    raise TypeError(f"a parameter is declared by a type, a collection of values or an Accept, got {spec!r}")


_WORDS = {"none": None, "null": None, "~": None, "true": True, "false": False}


def _meant(value: Any) -> Any:
    """What a text stands for that YAML or a command line did not read as a number, a truth value, None or a list."""
    if isinstance(value, (list, tuple)):
        return [_meant(item) for item in value]
    if isinstance(value, dict):
        return {key: _meant(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    try:
        number = float(value)
        return int(number) if number.is_integer() else number
    except ValueError:
        pass
    if value.strip()[:1] in ("[", "{"):
        try:
            return _meant(yaml.safe_load(value))
        except yaml.YAMLError:
            pass
    return value


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" of at least {low}" if low is not None else f" of at most {high}" if high is not None else ""


def begin(namespace: dict[str, Any]) -> None:
    """Remember which names exist before the ``parameters`` cell; pass ``globals()``, last in the set-up cell."""
    namespace[_SNAPSHOT] = {name: value for name, value in namespace.items() if not _IPYTHON.fullmatch(name)}


def check_parameters(
    namespace: dict[str, Any], *, chapter: str, params: str | Path | None = None, **declared: Any
) -> str:
    """Refuse parameters that the chapter does not know or cannot take; pass ``globals()``.

    Keys that a :func:`keyed` parameter lacks are filled in, in ``namespace``, from the *quick* preset.

    Args:
        namespace: the notebook's names, :func:`begin` having seen them before the ``parameters`` cell.
        chapter: name of the notebook without its ending, to find its preset files.
        params: folder of the preset files ``CHAPTER.PRESET.yaml``; default the book's, wherever the notebook was
            started, or those that came with fedlib.
        **declared: every parameter with what it accepts: a type, a collection of values, or
            :func:`integer`, :func:`real`, :func:`many`, :func:`optional`, :func:`keyed`. ``preset`` must be among them.

    Returns:
        The name to save results under: the preset, or ``"custom"``, with the reason on the page, where its file is not
        to be had or any value differs from it, or from the *quick* preset in what it leaves open (``save`` and
        ``checkpoints`` aside: they do not change a result).

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
    folders = [Path(params)] if params is not None else book_folders("params")
    quick = preset_values(chapter, "quick", folders) or {}
    for name, spec in declared.items():
        if name not in namespace:
            raise ValueError(f"parameter {name!r} is declared but has no default in the parameters cell")
        wanted, value = accept(spec), namespace[name]
        if isinstance(wanted, Keyed) and wanted.fill and isinstance(value, dict):
            value = namespace[name] = {**(quick.get(name) or {}), **value}
        if problem := wanted.problem(value):
            raise ValueError(f"parameter {name!r}{problem}")
    values = {name: namespace[name] for name in declared}
    namespace[_CHECKED] = chapter, values
    return _label(values, chapter, quick, folders)


def _label(values: Mapping[str, Any], chapter: str, quick: Mapping[str, Any], folders: Sequence[Path]) -> str:
    """The preset's name if its file is there and ``values`` are what it says, else ``custom``, saying why."""
    preset = values["preset"]
    said = preset_values(chapter, preset, folders)
    if said is None:
        where = " or ".join(f"`{folder}`" for folder in folders)
        reason = f"no file `{chapter}.{preset}.yaml` in {where} says what the preset `{preset}` is"
    else:
        wanted = {name: value for name, value in {**quick, **said}.items() if name not in _WHERE}
        absent = object()
        differ = [name for name, value in wanted.items() if _listed(values.get(name, absent)) != _listed(value)]
        if not differ:
            return preset
        reason = f"{', '.join(f'`{name}`' for name in differ)} {'differ' if len(differ) > 1 else 'differs'} from it"
        reason = f"the preset is `{preset}`, but {reason}"
    display(Markdown(f"*Results of this run are called `custom`: {reason}.*"))
    return "custom"


def _listed(value: Any) -> Any:
    """The value with lists for tuples, as YAML has it."""
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return {key: _listed(item) for key, item in value.items()} if isinstance(value, dict) else value


@contextmanager
def parameter(name: str) -> Iterator[None]:
    """Whatever is refused inside is said to be wrong with this parameter; random numbers are as before.

    A preset of hours loads and builds what its last section needs before it trains for the first.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # networks are built on the CPU
            yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"parameter {name!r}: {error}") from error


def checkpoint_names(namespace: Mapping[str, Any], besides: Collection[str] = ()) -> Checkpoints:
    """A function that names checkpoints so that no two runs meet that differ in what decides a result.

    The names carry the chapter, the preset, and a digest of all parameters but those that only choose what is run: a
    preset, the same with a section more, or interrupted, continues from its checkpoints; with other settings it has its
    own.

    Args:
        namespace: ``globals()``, after :func:`check_parameters`.
        besides: further parameters that choose among sweeps; what they decide is told to each name.

    Raises:
        RuntimeError: :func:`check_parameters` was not called.
    """
    if _CHECKED not in namespace:
        raise RuntimeError("call check_parameters(globals(), ...) first")
    chapter, values = namespace[_CHECKED]
    decides = {name: value for name, value in values.items() if name not in {*_WHERE, *_CHOICES, *besides}}
    folder = values.get("checkpoints")
    return Checkpoints(
        Path(folder).expanduser() if folder else None, f"{chapter[:2]}-{values['preset']}", written([chapter, decides])
    )


# ---------------------------------------------------------------- what a page shows


def show_source(*things: Any) -> None:
    """Show the source of functions and classes as it stands in fedlib, without docstrings."""
    sources = [re.sub(r'(?ms)^ +""".*?"""\n\n?', "", inspect.getsource(thing)).rstrip() for thing in things]
    display(Markdown("```python\n" + "\n\n\n".join(sources) + "\n```"))


def glue(name: str, text: Any) -> None:
    """Store a result under a name that the text of the page can refer to, as ``myst_nb.glue`` does.

    ``name`` is unique in the book; the text has ``{glue:text}`` and the name.
    """
    # as a literal, because the page evaluates it: bare, "+56" would lose its sign
    display(
        {"text/plain": repr(typeset(str(text)))}, metadata={"scrapbook": {"name": name, "mime_prefix": ""}}, raw=True
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``"1 seed"``, ``"1,000 rounds"``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def not_run(preset: str) -> None:
    """Say in the place of a section's results that the preset leaves it out."""
    told = "" if preset == "quick" else " What the text says of its results is about the preset `quick`."
    display(Markdown(f"*The preset `{preset}` does not run this section.{told}*"))


def rows(chapter: str, label: str) -> Record | None:
    """The rows that :mod:`fedlib.book.run` has recorded of a preset, which are then not run again; None without any.

    Args:
        chapter: name of the notebook without its ending.
        label: what :func:`check_parameters` returned.
    """
    file = book_folders("results")[0] / "rows" / f"{chapter}.{label}.json"
    return Record(chapter, label) if file.is_file() else None


def recorded(chapter: str, results: str | Path | None = None) -> dict[str, dict]:
    """What the larger presets of a chapter gave, by preset; shows for each where it comes from, or that it was not run.

    Hand-picked settings (``custom``) are nobody's record and are left out.

    Args:
        chapter: name of the notebook without its ending.
        results: folder of the results; default as for :func:`fedlib.book.claims.load_results`.
    """
    if results is None and not any(folder.is_dir() for folder in book_folders("results")):
        display(
            Markdown("*What the larger presets gave is in the repository's folder `book/results`, which is not here.*")
        )
        return {}
    there = _larger(load_results(results).get(chapter, {}))
    presets = [preset for preset in PRESETS if preset != "quick"]
    display(
        Markdown(
            "\n".join(
                f"- `{preset}`: {provenance(there[preset]) if preset in there else 'not run'}" for preset in presets
            )
        )
    )
    return there


def _larger(results: Mapping[str, dict]) -> dict[str, dict]:
    """Those of a chapter's results that larger presets than *quick* gave, from small to large."""
    return {preset: results[preset] for preset in PRESETS if preset in results and preset != "quick"}


def accuracies(row: Row, t: int | None = None, column: str = "accuracy") -> np.ndarray:
    """(seeds,), per cent.

    Args:
        t: after this round; default the level at the end, the mean of the last five evaluations.
        column: of the history.
    """
    return row.levels(column) if t is None else row.at(t, column)


def rate_of(row: Row) -> str:
    """A row's rate, and whether a better one may lie beyond those that were tried."""
    return f"{row.lr:g}" + (" (end of the grid)" if row.bound else "")


def ahead(row: Row | None, other: Row | None, t: int | None = None, column: str = "accuracy") -> np.ndarray | None:
    """Points that a row is ahead of another, one for each seed that both have; None where one of them was not run.

    Args:
        t, column: as for :func:`accuracies`.

    Raises:
        ValueError: no seed in common.
    """
    if row is None or other is None:
        return None
    seeds = [[run.config["seed"] for run in one.runs] for one in (row, other)]
    both = [seed for seed in seeds[0] if seed in seeds[1]]
    if not both:
        raise ValueError(f"rows {row.name!r} and {other.name!r} have no seed in common: {seeds[0]} and {seeds[1]}")
    ours, theirs = (accuracies(one, t, column) for one in (row, other))
    return ours[[seeds[0].index(seed) for seed in both]] - theirs[[seeds[1].index(seed) for seed in both]]


def span(values: Any, unit: str = " points") -> str:
    """The mean of differences with its 95 % interval, in words: ``"+16.9 points [10.3, 24.0]"``.

    "not run" for None; where a run diverged, that.
    """
    if values is None:
        return "not run"
    values = np.asarray(values, dtype=float)  # None in a record stands for a run that diverged
    if np.isnan(values).any():
        return f"not known, since {int(np.isnan(values).sum())} of {len(values)} runs diverged"
    low, high = interval(values)
    ends = f" [{low:.1f}, {high:.1f}]" if len(values) > 1 else ""
    return f"{float(np.mean(values)):+.1f}{unit}{ends}"


def curves(rows: Mapping[str, Row | None], preset: str, t: int | None = None, column: str = "accuracy") -> Any:
    """Test accuracy of rows over rounds, up to round t; says "not run" in the place of a figure without any.

    Args:
        column: of the history, that is shown.

    Returns:
        The axes; None without any rows.
    """
    there = {name: row.runs for name, row in rows.items() if row is not None}
    if not there:
        return not_run(preset)
    lines = {
        name: [run.history[run.history["round"] <= (t or math.inf)] for run in runs] for name, runs in there.items()
    }
    ax = plt.subplots()[1]
    ax.set_ylim(0, 100)  # first: labels stand where the lines end
    return plots.curves(lines, y=column, scale=100, ylabel="test accuracy (%)", ax=ax)


def lines(rows: Mapping[str, Row], t: int | None = None, column: str = "accuracy") -> dict[str, dict[str, Any]]:
    """A line of a table for each row: its rate, its accuracy in per cent (mean ± standard deviation), how many seeds.

    Args:
        t, column: as for :func:`accuracies`.
    """
    return {
        name: {"rate": rate_of(row), "accuracy": mean_std(accuracies(row, t, column), unit=""), "seeds": len(row.runs)}
        for name, row in rows.items()
    }


def section(name: str, here: Mapping[str, Mapping], there: Mapping[str, dict], caption: str) -> None:
    """A table of a section's rows, or of those that larger presets have recorded of it, where this one does not run it.

    Args:
        name: of the table, in results that are recorded.
        here: :func:`lines` of the rows of this run; empty where it has none.
        there: what was recorded of the chapter, by preset (:func:`recorded`).
        caption: of the table; of a recorded one the preset is added.
    """
    kept = {size: result["tables"].get(name) for size, result in _larger(there).items()}
    shown = {caption: here} if here else {f"{caption} Preset {size}.": rows for size, rows in kept.items() if rows}
    for told, rows in shown.items():
        display(table(pd.DataFrame.from_dict(dict(rows), orient="index"), caption=told))
    if not shown:
        display(Markdown("*Not run here, and no larger preset has recorded it.*"))


def draw_recorded(found: Mapping[str, dict], group: str = "methods", column: str = "accuracy") -> None:
    """Curves of a group of rows of every larger preset that was recorded.

    Args:
        found: what :func:`recorded` returned.
        group: of the curves, which are called ``"group: row"``.
        column: of the history, that is shown.
    """
    for name, result in found.items():
        runs_of = {
            key.partition(": ")[2]: runs for key, runs in result["curves"].items() if key.startswith(f"{group}: ")
        }
        if not runs_of:
            continue
        shown = {label: [pd.DataFrame(one) for one in runs] for label, runs in runs_of.items()}
        ax = plots.curves(shown, y=column, scale=100, ylabel="test accuracy (%)")
        ax.set_title(f"{result['config']['data'] if group == 'methods' else group}, preset {name}")
        plt.show()


def list_recorded(found: Mapping[str, dict]) -> None:
    """The table of methods of every larger preset that was recorded, and each of its claims with its verdict."""
    for name, result in found.items():
        display(table(pd.DataFrame.from_dict(result["tables"]["methods"], orient="index"), caption=f"Preset {name}."))
        judged = [one for one in result["claims"] if one["verdict"] != "not run"]
        told = [f"- *{one['statement']}* {typeset(one['measured'])}: **{one['verdict']}**" for one in judged]
        display(Markdown("\n".join(told)))


def wall_time(started: float, trained: float) -> float:
    """Seconds that a chapter took which began at the time ``started``.

    Args:
        trained: seconds of all its sweeps. A chapter that continues from checkpoints trained before it started; it then
            took at least as long as these sweeps take side by side.
    """
    return max(time.time() - started, trained / (1 if torch.cuda.is_available() else cores()))


def table(frame: pd.DataFrame, digits: int = 1, signed: Sequence[str] = (), caption: str | None = None) -> Styler:
    """A small table: ``digits`` decimals where numbers are not whole; the columns in ``signed`` show their sign."""

    def number(sign: str) -> Callable[[float], str]:
        def form(value: float) -> str:
            text = f"{value:{sign}.{digits}f}"
            return typeset(text) if float(text) else text.lstrip("+-")  # a rounded zero has no sign

        return form

    forms = {column: number("+" if column in signed else "") for column in frame.select_dtypes("number").columns}
    forms |= {column: "{:+,}" if column in signed else "{:,}" for column in frame.select_dtypes("integer").columns}
    forms |= {
        column: lambda value: typeset(value) if isinstance(value, str) else value
        for column in frame.columns
        if column not in forms
    }
    styled = frame.style.set_table_attributes('class="dataframe"')
    styled.format(forms, na_rep="–")
    return styled.set_caption(caption) if caption else styled


def _alike(low: float, high: float) -> str:
    """The ends of an interval with as many decimals each, three digits for the longer one: ``"-20.9 to 12.0"``."""
    longest = max(abs(low), abs(high))
    decimals = 2 - math.floor(math.log10(longest)) if 0 < longest < math.inf else 0
    return " to ".join(f"{end:.{max(0, decimals)}f}".replace("inf", "∞") for end in (low, high))


def _spoken(part: Mapping[str, Any]) -> str:
    """What one part of a claim was judged by: its interval and its bar."""
    _, _, name = part["id"].partition("/")
    start = name or "Interval"
    if part["verdict"] == "not run":
        return f"{start}: not run."
    number = len(part["values"][0]) if part["learned"] is not None else len(part["values"])
    low, high = part["interval"]
    ends = "not known of every seed" if math.isnan(low) else _alike(low, high)
    if part["learned"] is not None and low == -math.inf:
        ends = f"none, since the whole gain is not known to be above {part['learned']:g} points"
    found = f"{low:.3g}" if part["exact"] else f"{ends}, {counted(number, 'seed')}"
    weaker = f" (in part {part['weaker']:g})" if part["weaker"] is not None else ""
    if part["rounding"]:
        found += f", an end of which rounding moves by up to {part['rounding']:.2g}"
    return typeset(f"{start}: {found}. Bar: {part['sense']} {part['bar']:g}{weaker}: {part['verdict']}.")


def _reasons(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured and why the bars are where they are, each reason once."""
    told: dict[str, list[str]] = {}
    for part in parts:
        weaker = f"; in part {part['weaker']:g}: {part['weaker_reason']}" if part["weaker"] is not None else ""
        what, name = part["what"], part["id"].partition("/")[2]
        told.setdefault(f"{part['sense'].capitalize()} {part['bar']:g}: {part['reason']}{weaker}.", []).append(
            f"{name}: {what}" if name else what[0].upper() + what[1:]
        )
    lines = [typeset(f"{'; '.join(whats)}. {reason}") for reason, whats in told.items()]
    for least in dict.fromkeys(part["learned"] for part in parts if part["learned"] is not None):
        lines.append(f"A share is judged only of a gain whose whole interval lies above {least:g} points.")
    if any(part["known"] for part in parts):
        lines.append("These bars were set after earlier results were known.")
    return lines


def _marked(verdict: str) -> str:
    return f"{MARKS[verdict]} {verdict}"


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict.replace(" ", "-")}">{MARKS[verdict]} {verdict}</span>'


def _folded(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a claim was judged by, folded away; nothing for one that is judged by conditions."""
    if not parts:
        return []
    exact = all(part["exact"] for part in parts)
    summary = "Value, bar, and why" if exact else "95 % intervals, bars, and why"
    items = [*map(_spoken, parts), *_reasons(parts)]
    listed = "\n".join(f"<li>{html.escape(item, quote=False)}</li>" for item in items)
    return [f"<details><summary>{typeset(summary)}</summary>\n<ul>\n{listed}\n</ul>\n</details>"]


@dataclass
class Verdicts:
    """The claims of a chapter, in the order in which it judges them, and of which preset its runs are."""

    chapter: str
    preset: str | None = None
    claims: list[Claim] = field(default_factory=list)

    def measure(self, id: str, statement: str, paper: str, told: str, values: Any) -> None:
        """Add a claim about measured values and show it: its verdict follows from them and its bars.

        See :func:`fedlib.book.claims.measured` for the arguments.
        """
        self._add(measured(id, self.chapter, statement, paper, told, values, preset=self.preset))

    def _add(self, one: Claim) -> None:
        self.claims.append(one)
        here = typeset(one.measured) if isinstance(one.measured, str) else f"{one.measured:.4g}"
        kind = one.verdict.replace(" ", "-")
        paragraphs = [
            f"**Claim.** {typeset(one.statement)}",
            f"*Paper:* {typeset(one.paper)}. *Here:* {here}. {_badge(one.verdict)}",
        ]
        paragraphs += _folded(one.parts)
        for size, result in self._elsewhere.items():
            kept = next((kept for kept in result["claims"] if kept["id"] == one.id), None)
            if kept is None or kept["verdict"] == "not run":
                continue
            exact = any(part["exact"] for part in kept.get("parts") or ())  # which is the same everywhere
            if one.verdict == "not run" or not exact:
                told = typeset(str(kept["measured"]))
                paragraphs.append(f"*Preset `{size}`:* {told}. {_badge(kept['verdict'])}")
        body = "\n\n".join(paragraphs)
        display(Markdown(f'<div class="claim {kind}">\n\n{body}\n\n</div>'))

    @cached_property
    def _elsewhere(self) -> dict[str, dict]:
        """What other presets, larger than *quick*, have given: shown beside what this one gives."""
        there = _larger(load_results().get(self.chapter, {}))
        return {size: result for size, result in there.items() if size != self.preset}

    def table(self) -> Styler:
        """All claims, paper beside ours, each verdict in its colour, and those of larger presets."""
        there = {
            size: {kept["id"]: kept["verdict"] for kept in result["claims"]} for size, result in self._elsewhere.items()
        }
        frame = pd.DataFrame(
            [
                {
                    "claim": one.statement,
                    "paper": one.paper,
                    "here": one.measured,
                    "verdict": _marked(one.verdict),
                    **{size: _marked(verdicts.get(one.id, "not run")) for size, verdicts in there.items()},
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

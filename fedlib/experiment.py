"""An experiment is a table: each row a name and what differs, each tuned by itself, all trained side by side.

    plan = fl.Plan(network, data, parts, rounds=60, lr=[0.03, 0.1, 0.3], seed=range(100, 110), local_steps=5)
    found = plan.run({"FedAvg": {}, "FedProx": {"algorithm": fl.algorithms.fedprox()}, "FedLN": {"norm": "layer"}})
    found["FedLN"].levels(), found.best(), found.table()

A rate is chosen by validation images alone, with seeds of its own, and the chosen one is then run with the seeds that
are reported: the test set is looked at once. What has been run already is not run again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import nn

from fedlib import checks, fingerprint
from fedlib.algorithms import Algorithm, fedavg
from fedlib.data import Data, as_array
from fedlib.parallel import side_by_side
from fedlib.simulate import Run, Simulation, Split, sweep

LAST = 5  # evaluations, whose mean is the level that a run has reached: the last one alone is partly luck
FIRST = 3  # rounds, by which a record is replayed
OWN = (
    "data",
    "parts",
    "rounds",
    "lr",
    "seed",
    "tune_seed",
    "tune_rounds",
    "widen",
    "by",
)  # what a row may say of the plan
_SPLITS = ("test_parts", "val_parts")
_ELSEWHERE = ("device", "engine", "chunk", "wave", "workers", "checkpoint_minutes")  # change no number beyond rounding
_SIMULATION = {*inspect.signature(Simulation).parameters, "evaluate_every", "checkpoint_minutes"}
_SIMULATION -= {"model", "data", "parts", "lr", "seed", "algorithm"}


def level(values: Sequence[float] | pd.Series) -> float:
    """Mean of the last evaluations, in per cent; NaN for a run without any."""
    last = np.asarray(values, dtype=float)[-LAST:]
    return 100 * float(last.mean()) if len(last) else math.nan


def choose(tried: Mapping[float, Sequence[Sequence[float]]]) -> float:
    """The rate whose validation accuracies are highest at the end, on the mean over its runs; the smallest of equals.

    Args:
        tried: rate -> of each of its runs the validation accuracy after each evaluated round, () for one that diverged,
            which puts its rate out of the competition.
    """
    scores = {rate: float(np.mean([level(run) for run in runs])) for rate, runs in tried.items()}
    return max(scores, key=lambda rate: (scores[rate] if math.isfinite(scores[rate]) else -1.0, -rate))


def next_rate(lr: float, step: int) -> float:
    """The rate ``step`` steps further along ..., 0.03, 0.1, 0.3, 1, ..."""
    return float(f"{10 ** ((round(2 * math.log10(lr)) + step) / 2):.1g}")


@dataclass(frozen=True)
class Row:
    """One row of an experiment.

    Attributes:
        name: its name in the table.
        differs: what it says.
        lr: the rate that was chosen for it.
        tried: rate -> its validation level in the tuning runs, in per cent (NaN where one diverged); empty where
            nothing was chosen.
        runs: those that are reported, one a seed.
        tuning: rate -> the runs that it was judged by.
        first: where the first of its seeds stands after three rounds (:func:`fedlib.fingerprint.of_weights`), by which
            a record is replayed; () where nothing is recorded.
    """

    name: str
    differs: Mapping[str, Any]
    lr: float
    tried: Mapping[float, float]
    runs: Sequence[Run]
    tuning: Mapping[float, Sequence[Run]] = field(default_factory=dict, repr=False)
    first: Sequence[float] = ()

    @property
    def bound(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried: a better one may lie beyond."""
        return len(self.tried) > 1 and not _alike(self.tried) and self.lr in (min(self.tried), max(self.tried))

    def curves(self, column: str = "accuracy") -> pd.DataFrame:
        """A column of the history: one line per evaluated round, one column per seed; NaN after a run diverged."""
        by_seed = {run.config["seed"]: run.history.set_index("round")[column] for run in self.runs}
        return pd.DataFrame(by_seed).sort_index().astype(float)

    def levels(self, column: str = "accuracy") -> np.ndarray:
        """(seeds,), per cent: the mean of the last five evaluations of each run; NaN for one that diverged."""
        return np.array([level(run.history[column]) if run.diverged is None else math.nan for run in self.runs])

    def last(self, column: str = "accuracy") -> np.ndarray:
        """(seeds,), per cent: after the last round, as papers report it; NaN for a run that diverged."""
        return np.array([100 * run.history[column].iloc[-1] if run.diverged is None else math.nan for run in self.runs])

    def at(self, t: int, column: str = "accuracy") -> np.ndarray:
        """(seeds,), per cent, at the last evaluation up to round t; NaN for a run that had diverged by then.

        Raises:
            ValueError: nothing was evaluated by then.
        """
        curves = self.curves(column)
        if len(curves) and t < curves.index[0]:
            raise ValueError(f"round must be at least {curves.index[0]}, the first that was evaluated, got {t}")
        found = []
        for run in self.runs:
            lines, every = run.history[run.history["round"] <= t], run.config.get("evaluate_every")
            due = max([*curves.index[curves.index <= t], t // every * every if every else 0])
            lost = run.diverged is not None and (not len(lines) or lines["round"].iloc[-1] < due)
            found.append(math.nan if lost else 100 * float(lines[column].iloc[-1]))
        return np.array(found)

    def rounds_to(self, accuracy: float, column: str = "accuracy") -> np.ndarray:
        """(seeds,), the first evaluated round with at least this accuracy, in per cent; infinite where none has it."""
        reached = [run.history.loc[100 * run.history[column] >= accuracy, "round"] for run in self.runs]
        return np.array([float(rounds.iloc[0]) if len(rounds) else math.inf for rounds in reached])


def _alike(tried: Mapping[float, float]) -> bool:
    """Whether all rates score the same."""
    scores = [*tried.values()]
    return bool(np.isfinite(scores).all()) and max(scores) - min(scores) < 1e-9


class Recording(Protocol):
    """Keeps finished rows."""

    def get(
        self, table: str, row: str, description: Mapping[str, Any], again: Callable[[float], Sequence[float]]
    ) -> Row | None:
        """A row that was recorded under this description; ``again(lr)`` is what its first rounds give now."""
        ...

    def put(self, table: str, row: Row, description: Mapping[str, Any]) -> None:
        """Keep a row."""
        ...


class Found(Mapping[str, Row]):
    """What an experiment gave: name -> :class:`Row`, in the order of its table; empty where it was not run."""

    def __init__(self, rows: Mapping[str, Row]):
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Row:
        if name not in self._rows:
            raise KeyError(f"no row {name!r} was run; there are {', '.join(self._rows) or 'none'}")
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def best(self) -> dict[str, float]:
        """Each row's rate."""
        return {name: row.lr for name, row in self.items()}

    def runs(self) -> dict[str, Sequence[Run]]:
        """Each row's runs, for :func:`fedlib.book.plots.curves`."""
        return {name: row.runs for name, row in self.items()}

    def table(self) -> pd.DataFrame:
        """One line a row: rate, level and last round as mean and standard deviation over seeds, and how many seeds.

        ``bound`` says that a rate beyond those tried may be better still.
        """
        columns = ["rate", "bound", "level", "level_std", "last", "last_std", "seeds"]
        lines = {}
        for name, row in self.items():
            values = {"level": row.levels(), "last": row.last()}
            told: dict[str, Any] = {"rate": row.lr, "bound": row.bound, "seeds": len(row.runs)}
            for key, of_seeds in values.items():
                told |= {key: of_seeds.mean(), f"{key}_std": of_seeds.std(ddof=1) if len(of_seeds) > 1 else math.nan}
            lines[name] = told
        return pd.DataFrame.from_dict(lines, orient="index", columns=columns)

    @property
    def seconds(self) -> float:
        """Of training, all sweeps together; the runs of one share its time."""
        return sum({run.seconds for row in self.values() for run in _all(row)})


def _all(row: Row) -> list[Run]:
    return [*row.runs, *(run for runs in row.tuning.values() for run in runs)]


@dataclass(frozen=True)
class Plan:
    """What the rows of an experiment share.

    Attributes:
        model: ``(**words) -> module``. What a row says beside the settings named here and those of
            :class:`fedlib.simulate.Simulation` goes to it: ``{"norm": "layer"}`` calls ``model(norm="layer")``.
        data: what is learned; with validation images (:func:`fedlib.data.hold_out`) where rates are chosen.
        parts: who holds what, or a function of the seed that says it.
        rounds: communication rounds of the reported runs.
        lr: the rates to choose from. One rate: nothing is chosen.
        seed: of the reported runs.
        tune_seed: of the runs that a rate is chosen by; none of ``seed``.
        tune_rounds: their length; default ``rounds``.
        widen: how many rates to add, one by one, while the best one is at an end of those tried.
        by: the column of the history that rates are chosen by: one that ``measure`` adds, of a method without labels.
        options: the other arguments of :func:`fedlib.simulate.sweep` (``local_steps``, ``batch_size``, ...).
        checkpoint: ``(*words, **settings) -> path or None``, the checkpoint of a sweep; see
            :func:`fedlib.book.chapter.checkpoint_names`.
        record: where finished rows are kept, and found instead of being run again; see :mod:`fedlib.book.record`.
        known: what has been run already; plans that come of each other share it.
    """

    model: Callable[..., nn.Module]
    data: Data
    parts: Split
    rounds: int
    lr: Sequence[float]
    seed: Sequence[int]
    tune_seed: Sequence[int] = (0,)
    tune_rounds: int | None = None
    widen: int = 0
    by: str = "validation"
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Callable[..., Path | None] | None = None
    record: Recording | None = None
    known: dict[tuple, Run] = field(default_factory=dict, repr=False)

    def __init__(
        self,
        model: Callable[..., nn.Module],
        data: Data,
        parts: Split,
        *,
        rounds: int,
        lr: Sequence[float],
        seed: Sequence[int],
        tune_seed: Sequence[int] = (0,),
        tune_rounds: int | None = None,
        widen: int = 0,
        by: str = "validation",
        checkpoint: Callable[..., Path | None] | None = None,
        record: Recording | None = None,
        **options: Any,
    ):
        for name, given in (("lr", lr), ("seed", seed), ("tune_seed", tune_seed)):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise ValueError(f"{name} must be a list of values, got {given!r}")
        values = {
            "model": model, "data": data, "parts": parts, "rounds": rounds, "lr": [*lr], "seed": [*seed],
            "tune_seed": [*tune_seed], "tune_rounds": tune_rounds, "widen": widen, "by": by,
            "checkpoint": checkpoint, "record": record, "options": options, "known": {},
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        checks.whole(rounds=self.rounds)
        checks.whole(0, widen=self.widen)
        if self.tune_rounds is not None:
            checks.whole(tune_rounds=self.tune_rounds)
        for name in ("lr", "seed", "tune_seed"):
            values = getattr(self, name)
            if not values or len({*values}) < len(values):
                raise ValueError(f"{name} must hold at least one value, none twice, got {values!r}")
        unknown = next((name for name in self.options if name not in _SIMULATION), None)
        if unknown == "algorithm":
            raise ValueError("algorithm belongs into a row: {'FedProx': {'algorithm': fl.algorithms.fedprox()}}")
        if unknown is not None:
            raise ValueError(f"{unknown!r} is no argument of a sweep.{checks.hint(unknown, _SIMULATION)}")
        if self.chooses:
            both = sorted({*self.seed} & {*self.tune_seed})
            if both:
                raise ValueError(f"tune_seed must hold none of the seeds that are reported, both have {both}")
            if self.by in ("accuracy", "client_accuracy"):
                raise ValueError(f"by must be a column that no test image has a part in, got {self.by!r}")
            if self.by == "validation" and self.data.x_val is None:
                raise ValueError(
                    f"a rate is chosen by validation images, and {self.data.name!r} has none; see fl.data.hold_out"
                )

    @property
    def chooses(self) -> bool:
        """Whether there is more than one rate to choose from."""
        return len(self.lr) > 1

    def but(self, **changes: Any) -> Plan:
        """The same plan with other settings, of its own or of the simulation; what has been run stays known."""
        own = {name: changes.pop(name) for name in [*changes] if name in (*OWN, "model", "checkpoint", "record")}
        listed = {name: [*own[name]] for name in ("lr", "seed", "tune_seed") if name in own}
        plan = object.__new__(Plan)
        for name, value in {**vars(self), **own, **listed, "options": {**self.options, **changes}}.items():
            object.__setattr__(plan, name, value)
        plan._check()
        return plan

    def run(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        name: str = "",
        *,
        when: bool = True,
        first: Sequence[str] = (),
        one_by_one: bool = False,
    ) -> Found:
        """Train every row, several side by side: first what chooses its rate, then the runs that are reported.

        Args:
            rows: name -> what differs, in words of the plan, of the simulation (``algorithm`` among them) or of the
                model. A row with ``{"lr": [0.1]}`` chooses nothing.
            name: of the table, in a record.
            when: False runs nothing, and gives an experiment without rows.
            first: rows that take longest; they are begun first.
            one_by_one: one row after another, each on all cores: of a network that keeps them busy.

        Raises:
            ValueError: a word that neither plan, simulation nor model knows.
        """
        if not when:
            return Found({})
        _check_rows(rows)
        entries = {row: _Entry.of(self, row, differs) for row, differs in rows.items()}
        found = {row: self._recorded(name, entry) for row, entry in entries.items()}
        jobs: dict[tuple, _Entry] = {}  # rows that say the same are trained once, under the name of the first
        for row, entry in entries.items():
            if found[row] is None:
                jobs.setdefault(entry.recipe, entry)

        known = {recipe: self._known_of(entry) for recipe, entry in jobs.items()}

        def train(recipe: tuple) -> Row:
            return jobs[recipe].train(known[recipe])

        def keep(recipe: tuple, row: Row) -> None:
            for run in _all(row):
                self.known[jobs[recipe].key(run.config["lr"], run.config["seed"], run.config["rounds"])] = run
            alike = [e for e in entries.values() if e.recipe == recipe and found[e.name] is None]
            for entry in alike:
                if self.record is not None:
                    self.record.put(name, replace(row, name=entry.name), entry.description)

        longest = [recipe for recipe, entry in jobs.items() if entry.name in first]
        trained: dict[Hashable, Row] = {}
        for some in [[job] for job in jobs] if one_by_one else [jobs]:
            trained |= side_by_side(train, some, first=longest, each=keep)
        return Found(
            {
                row: replace(found[row] or trained[entry.recipe], name=row, differs=dict(rows[row]))
                for row, entry in entries.items()
            }
        )

    def _known_of(self, entry: _Entry) -> dict[tuple, Run]:
        return {key: run for key, run in self.known.items() if key[0] == entry.identity}

    def __getstate__(self) -> dict[str, Any]:
        # What is known grows while rows travel to other processes, which need none of it.
        return {**vars(self), "known": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _recorded(self, name: str, entry: _Entry) -> Row | None:
        return None if self.record is None else self.record.get(name, entry.name, entry.description, entry.first)


def _check_rows(rows: object) -> None:
    """Refuse what is no table of rows."""
    if not isinstance(rows, Mapping):
        raise ValueError(f"rows must be a dict of a row's name to what differs, got {rows!r}")
    for name, differs in rows.items():
        if not isinstance(name, str):
            raise ValueError(f"a row's name must be a text, got {name!r}")
        if not isinstance(differs, Mapping):
            raise ValueError(f"row {name!r} must be a dict of what differs, {{}} where nothing does, got {differs!r}")


def _validations(tried: Mapping[float, Sequence[Run]], by: str) -> dict[float, list[Sequence[float]]]:
    """What a choice may look at: rate -> the validation accuracies of each of its runs."""
    return {
        lr: [() if run.diverged is not None else run.history[by].tolist() for run in runs] for lr, runs in tried.items()
    }


def _scores(tried: Mapping[float, Sequence[Run]], by: str) -> dict[float, float]:
    """rate -> mean validation level of its runs."""
    return {lr: float(np.mean([level(run) for run in runs])) for lr, runs in _validations(tried, by).items()}


def _digest(splits: Sequence[Any]) -> str | None:
    """Of who holds what under each of several seeds."""
    if splits[0] is None:
        return None
    return fingerprint.of_text(*(str(fingerprint.of_parts([as_array(part) for part in split])) for split in splits))


@dataclass(frozen=True)
class _Entry:
    """A row with everything that the plan says of it."""

    plan: Plan
    name: str
    algorithm: Algorithm
    words: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan, name: str, differs: Mapping[str, Any]) -> _Entry:
        own = {key: value for key, value in differs.items() if key in OWN}
        algorithm = differs.get("algorithm", fedavg())
        if not isinstance(algorithm, Algorithm):
            raise ValueError(
                f"row {name!r}: algorithm must be a method such as fl.algorithms.fedavg(), got {algorithm!r}"
            )
        options = {key: value for key, value in differs.items() if key in _SIMULATION}
        rest = {key: value for key, value in differs.items() if key not in (*own, *options, "algorithm")}
        signature = inspect.signature(plan.model)
        try:
            bound = signature.bind(**rest)
        except TypeError as error:
            known = (*OWN, *sorted(_SIMULATION), *signature.parameters)
            hints = "".join(checks.hint(key, known) for key in rest if key not in known)
            raise ValueError(f"a row says {rest!r}, which the model does not take: {error}.{hints}") from error
        bound.apply_defaults()
        words = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                words |= words.pop(parameter.name)
        row = plan.but(**own, **options)
        axes = {key: row.options.get(key) for key in ("weight_decay", "clip")} | dict(row.options.get("settings") or {})
        several = next((key for key, values in axes.items() if values is not None and len(values) > 1), None)
        if several is not None:
            raise ValueError(f"row {name!r}: {several} must have one value, got {axes[several]!r}; make a row of each")
        return cls(row, name, algorithm, words)

    @property
    def tune_rounds(self) -> int:
        return self.plan.tune_rounds or self.plan.rounds

    @cached_property
    def identity(self) -> str:
        """Equal for rows whose runs with the same rate and seed are the same."""
        plan = self.plan
        told = {"model": plan.model, "words": dict(self.words), "algorithm": self.algorithm, "parts": plan.parts}
        return fingerprint.of_functions({**told, "data": plan.data, "options": dict(plan.options)})

    @cached_property
    def recipe(self) -> tuple:
        """Equal for rows that are trained alike."""
        plan = self.plan
        lists = (tuple(plan.lr), tuple(plan.seed), tuple(plan.tune_seed) if plan.chooses else ())
        choice = (self.tune_rounds, plan.by) if plan.chooses else ()
        return self.identity, *lists, plan.rounds, *choice, plan.widen

    @cached_property
    def description(self) -> dict[str, Any]:
        """What a record must agree with to stand for this row; code is not part of it, a record's card has that."""
        plan = self.plan
        seeds = (*plan.seed, *(plan.tune_seed if plan.chooses else ()))
        given = {"parts": plan.parts, **{name: plan.options.get(name) for name in _SPLITS}}
        held = {name: [split(s) if callable(split) else split for s in seeds] for name, split in given.items()}
        plain = {name: value for name, value in plan.options.items() if name not in (*_SPLITS, *_ELSEWHERE)}
        return {
            "algorithm": [self.algorithm.name, dict(self.algorithm.settings)],
            "model": fingerprint.of_functions([plan.model, dict(self.words)], by_name=True),
            "data": fingerprint.of_data(plan.data),
            "partition": {name: _digest(splits) for name, splits in held.items()},
            "lr": plan.lr, "seed": plan.seed, "rounds": plan.rounds, "widen": plan.widen if plan.chooses else 0,
            "tuning": [plan.tune_seed, self.tune_rounds] if plan.chooses else None,
            "options": fingerprint.of_functions(plain, by_name=True),
            **({"by": plan.by} if plan.chooses and plan.by != "validation" else {}),
        }  # fmt: skip

    def key(self, lr: float, seed: int, rounds: int) -> tuple:
        return self.identity, float(lr), int(seed), rounds

    def train(self, known: dict[tuple, Run]) -> Row:
        """Choose the rate, then run it with the seeds that are reported."""
        plan, tried, added = self.plan, {}, 0
        rates = plan.lr if plan.chooses else []
        while rates:
            tried |= self._runs(known, rates, plan.tune_seed, self.tune_rounds)
            wider, added = self._wider(tried), added + 1
            rates = [] if wider is None or added > plan.widen else [wider]
        best = choose(_validations(tried, plan.by)) if tried else plan.lr[0]
        runs = self._runs(known, [best], plan.seed, plan.rounds)[best]
        first = [] if plan.record is None else self.first(best)
        return Row(self.name, {}, best, dict(sorted(_scores(tried, plan.by).items())), runs, tried, first)

    def first(self, lr: float) -> list[float]:
        """Where the first seed stands after three rounds."""
        (run,) = self._sweep([lr], self.plan.seed[:1], FIRST, checkpoint=False)
        return fingerprint.of_weights([run.weights.w])[0].tolist()

    def _wider(self, tried: Mapping[float, list[Run]]) -> float | None:
        """The next rate, where the best so far is at an end of those tried.

        Raises:
            ValueError: a method without labels, of which there is nothing to choose by.
        """
        by = self.plan.by
        if not any(np.isfinite(run.history[by]).all() for runs in tried.values() for run in runs):
            if all(run.diverged is None for runs in tried.values() for run in runs):
                raise ValueError(
                    f"row {self.name!r}: {self.algorithm.name!r} has no {by} accuracy to choose a rate by; "
                    "give it one rate"
                )
        best = choose(_validations(tried, by))
        if _alike(_scores(tried, by)) or best not in (min(tried), max(tried)):
            return None
        return next_rate(best, -1 if best == min(tried) else 1)

    def _runs(
        self, known: dict[tuple, Run], rates: Sequence[float], seeds: Sequence[int], rounds: int
    ) -> dict[float, list[Run]]:
        """rate -> its runs, one a seed; only those that are not known are trained."""
        missing: dict[tuple[int, ...], list[float]] = {}
        for lr in rates:
            absent = tuple(seed for seed in seeds if self.key(lr, seed, rounds) not in known)
            if absent:
                missing.setdefault(absent, []).append(lr)
        for absent, lrs in missing.items():
            for run in self._sweep(lrs, absent, rounds):
                known[self.key(run.config["lr"], run.config["seed"], rounds)] = run
        return {lr: [known[self.key(lr, seed, rounds)] for seed in seeds] for lr in rates}

    def _sweep(self, lr: Sequence[float], seed: Sequence[int], rounds: int, checkpoint: bool = True) -> list[Run]:
        plan, words = self.plan, dict(self.words)
        file = plan.checkpoint if checkpoint else None
        ask = {"row": self.identity, "lr": [*lr], "seed": [*seed], "rounds": rounds}
        return sweep(
            lambda: plan.model(**words), plan.data, plan.parts, self.algorithm, rounds=rounds, lr=lr, seed=seed,
            checkpoint=file and file(self.name, **ask), progress=self.name, **plan.options,
        )  # fmt: skip

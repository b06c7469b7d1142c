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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from fedlib import checks, fingerprint
from fedlib.algorithms import Algorithm, fedavg
from fedlib.data import Data
from fedlib.parallel import side_by_side
from fedlib.simulate import Run, Simulation, Split, sweep
from fedlib.tuning import next_rate

LAST = 5  # evaluations, whose mean is the level that a run has reached: the last one alone is partly luck
OWN = ("data", "parts", "rounds", "lr", "seed", "tune_seed", "tune_rounds", "widen")  # what a row may say of the plan
_SIMULATION = {*inspect.signature(Simulation).parameters, "evaluate_every"} - {"model", "data", "parts", "lr", "seed"}


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
    """

    name: str
    differs: Mapping[str, Any]
    lr: float
    tried: Mapping[float, float]
    runs: Sequence[Run]
    tuning: Mapping[float, Sequence[Run]] = field(default_factory=dict, repr=False)

    @property
    def bound(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried: a better one may lie beyond."""
        found = [score for score in self.tried.values() if math.isfinite(score)]
        equal = len(found) == len(self.tried) and max(found) - min(found) < 1e-9
        return len(self.tried) > 1 and not equal and self.lr in (min(self.tried), max(self.tried))

    def curves(self, column: str = "accuracy") -> pd.DataFrame:
        """A column of the history: one line per evaluated round, one column per seed; NaN after a run diverged."""
        return pd.DataFrame(
            {run.config["seed"]: run.history.set_index("round")[column] for run in self.runs}
        ).sort_index()

    def levels(self, column: str = "accuracy") -> np.ndarray:
        """(seeds,), per cent: the mean of the last five evaluations of each run; NaN for one that diverged."""
        return np.array([level(run.history[column]) if run.diverged is None else math.nan for run in self.runs])

    def last(self, column: str = "accuracy") -> np.ndarray:
        """(seeds,), per cent: after the last round, as papers report it; NaN for a run that diverged."""
        return np.array([100 * run.history[column].iloc[-1] if run.diverged is None else math.nan for run in self.runs])

    def at(self, t: int, column: str = "accuracy") -> np.ndarray:
        """(seeds,), per cent, at the last evaluation up to round t.

        Raises:
            ValueError: nothing was evaluated by then.
        """
        curves = self.curves(column)
        if t < curves.index[0]:
            raise ValueError(f"round must be at least {curves.index[0]}, the first that was evaluated, got {t}")
        return 100 * curves.loc[:t].iloc[-1].to_numpy()

    def rounds_to(self, accuracy: float, column: str = "accuracy") -> np.ndarray:
        """(seeds,), the first evaluated round with at least this accuracy, in per cent; infinite where none has it."""
        reached = 100 * self.curves(column) >= accuracy
        return np.where(reached.any(), reached.idxmax(), math.inf)


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
        """Of training, all runs together."""
        return sum({id(run): run.seconds for row in self.values() for run in _all(row)}.values())


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
        options: the other arguments of :func:`fedlib.simulate.sweep` (``local_steps``, ``batch_size``, ...).
        checkpoint: ``(*words, **settings) -> path or None``, the checkpoint of a sweep; see
            :func:`fedlib.book.chapter.checkpoint_names`.
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
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Callable[..., Path | None] | None = None
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
        checkpoint: Callable[..., Path | None] | None = None,
        **options: Any,
    ):
        values = {
            "model": model, "data": data, "parts": parts, "rounds": rounds, "lr": [*lr], "seed": [*seed],
            "tune_seed": [*tune_seed], "tune_rounds": tune_rounds, "widen": widen, "checkpoint": checkpoint,
            "options": options, "known": {},
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
        if unknown is not None:
            raise ValueError(f"{unknown!r} is no argument of a sweep.{checks.hint(unknown, _SIMULATION)}")
        if self.chooses:
            both = sorted({*self.seed} & {*self.tune_seed})
            if both:
                raise ValueError(f"tune_seed must hold none of the seeds that are reported, both have {both}")
            if self.data.x_val is None:
                raise ValueError(
                    f"a rate is chosen by validation images, and {self.data.name!r} has none; see fl.data.hold_out"
                )

    @property
    def chooses(self) -> bool:
        """Whether there is more than one rate to choose from."""
        return len(self.lr) > 1 or self.widen > 0

    def but(self, **changes: Any) -> Plan:
        """The same plan with other settings, of its own or of the simulation; what has been run stays known."""
        own = {name: changes.pop(name) for name in [*changes] if name in (*OWN, "model", "checkpoint")}
        listed = {name: [*own[name]] for name in ("lr", "seed", "tune_seed") if name in own}
        plan = object.__new__(Plan)
        for name, value in {**vars(self), **own, **listed, "options": {**self.options, **changes}}.items():
            object.__setattr__(plan, name, value)
        plan._check()
        return plan

    def run(self, rows: Mapping[str, Mapping[str, Any]], *, when: bool = True, first: Sequence[str] = ()) -> Found:
        """Train every row, several side by side: first what chooses its rate, then the runs that are reported.

        Args:
            rows: name -> what differs, in words of the plan, of the simulation (``algorithm`` among them) or of the
                model. A row with ``{"lr": [0.1]}`` chooses nothing.
            when: False runs nothing, and gives an experiment without rows.
            first: rows that take longest; they are begun first.

        Raises:
            ValueError: a word that neither plan, simulation nor model knows.
        """
        if not when:
            return Found({})
        entries = {name: _Entry.of(self, differs) for name, differs in rows.items()}
        tried = self._tune(entries, first)
        best = {
            name: choose({lr: [_validation(run) for run in runs] for lr, runs in of_rates.items()})
            for name, of_rates in tried.items()
        }
        rates = {name: best.get(name, entry.plan.lr[0]) for name, entry in entries.items()}
        self._train([(name, e, [rates[name]], e.plan.seed, e.plan.rounds) for name, e in entries.items()], first)
        found = {}
        for name, entry in entries.items():
            of_rates = tried.get(name, {})
            scores = {lr: float(np.mean([level(_validation(run)) for run in runs])) for lr, runs in of_rates.items()}
            runs = [self.known[entry.key(rates[name], seed, entry.plan.rounds)] for seed in entry.plan.seed]
            found[name] = Row(name, dict(rows[name]), rates[name], dict(sorted(scores.items())), runs, of_rates)
        return Found(found)

    def _tune(self, entries: Mapping[str, _Entry], first: Sequence[str]) -> dict[str, dict[float, list[Run]]]:
        """Of every row that chooses: rate -> the runs it is judged by."""
        asked = {name: [*entry.plan.lr] for name, entry in entries.items() if entry.plan.chooses}
        tried: dict[str, dict[float, list[Run]]] = {name: {} for name in asked}
        added = dict.fromkeys(asked, 0)
        while asked:
            self._train(
                [(n, entries[n], lrs, entries[n].plan.tune_seed, entries[n].tune_rounds) for n, lrs in asked.items()],
                first,
            )
            for name, rates in asked.items():
                entry = entries[name]
                for lr in rates:
                    keys = [entry.key(lr, seed, entry.tune_rounds) for seed in entry.plan.tune_seed]
                    tried[name][lr] = [self.known[key] for key in keys]
            asked = {name: more for name in asked if (more := self._wider(entries[name], tried[name], added, name))}
        return tried

    @staticmethod
    def _wider(entry: _Entry, tried: Mapping[float, list[Run]], added: dict[str, int], name: str) -> list[float]:
        """The next rate, where the best so far is at an end of those tried."""
        validation = {lr: [_validation(run) for run in runs] for lr, runs in tried.items()}
        best, scores = choose(validation), [np.mean([level(run) for run in runs]) for runs in validation.values()]
        alike = np.isfinite(scores).all() and max(scores) - min(scores) < 1e-9
        if added[name] >= entry.plan.widen or alike or best not in (min(tried), max(tried)):
            return []
        added[name] += 1
        return [next_rate(best, -1 if best == min(tried) else 1)]

    def _train(self, wanted: list[tuple[str, _Entry, list[float], Sequence[int], int]], first: Sequence[str]) -> None:
        """Run what is not known yet, one sweep for each row and set of missing seeds, several side by side."""
        jobs: dict[tuple, tuple[_Entry, list[float], list[int], int, str]] = {}
        for name, entry, rates, seeds, rounds in wanted:
            missing: dict[tuple[int, ...], list[float]] = {}
            for lr in rates:
                absent = tuple(seed for seed in seeds if entry.key(lr, seed, rounds) not in self.known)
                if absent:
                    missing.setdefault(absent, []).append(lr)
            for absent, lrs in missing.items():
                # rows that say the same are run once, under the name of the first
                jobs.setdefault((entry.identity, *lrs, *absent, rounds), (entry, lrs, [*absent], rounds, name))

        def train(key: tuple) -> list[Run]:
            entry, lrs, seeds, rounds, name = jobs[key]
            return entry.sweep(lrs, seeds, rounds, name)

        longest = [key for key, job in jobs.items() if job[-1] in first]
        trained = side_by_side(train, jobs, first=longest)
        for key, (entry, _, _, rounds, _) in jobs.items():
            for run in trained[key]:
                self.known[entry.key(run.config["lr"], run.config["seed"], rounds)] = run


def _validation(run: Run) -> Sequence[float]:
    """What a choice may look at."""
    return () if run.diverged is not None else run.history["validation"].tolist()


@dataclass(frozen=True)
class _Entry:
    """A row with everything that the plan says of it."""

    plan: Plan
    algorithm: Algorithm
    words: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan, differs: Mapping[str, Any]) -> _Entry:
        own = {name: value for name, value in differs.items() if name in OWN}
        algorithm = differs.get("algorithm") or fedavg()
        options = {name: value for name, value in differs.items() if name in _SIMULATION and name != "algorithm"}
        rest = {k: v for k, v in differs.items() if k not in own and k not in options and k != "algorithm"}
        try:
            bound = inspect.signature(plan.model).bind(**rest)
        except TypeError as error:
            known = (*OWN, *sorted(_SIMULATION), *inspect.signature(plan.model).parameters)
            hints = "".join(checks.hint(name, known) for name in rest if name not in known)
            raise ValueError(f"a row says {rest!r}, which the model does not take: {error}.{hints}") from error
        bound.apply_defaults()
        return cls(plan.but(**own, **options), algorithm, bound.arguments)

    @property
    def tune_rounds(self) -> int:
        return self.plan.tune_rounds or self.plan.rounds

    @cached_property
    def identity(self) -> str:
        """Equal for rows that are trained alike."""
        plan = self.plan
        told = {"model": plan.model, "words": dict(self.words), "algorithm": self.algorithm, "parts": plan.parts}
        return fingerprint.of_functions({**told, "data": plan.data, "options": dict(plan.options)})

    def key(self, lr: float, seed: int, rounds: int) -> tuple:
        return self.identity, float(lr), int(seed), rounds

    def sweep(self, lr: Sequence[float], seed: Sequence[int], rounds: int, name: str) -> list[Run]:
        plan, words = self.plan, dict(self.words)
        file = plan.checkpoint and plan.checkpoint(name, row=self.identity, lr=[*lr], seed=[*seed], rounds=rounds)
        return sweep(
            lambda: plan.model(**words), plan.data, plan.parts, self.algorithm, rounds=rounds, lr=lr, seed=seed,
            checkpoint=file, progress=name, **plan.options,
        )  # fmt: skip

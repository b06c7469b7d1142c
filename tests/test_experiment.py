"""Experiments as tables: what is chosen by what, what is run, and what a row says."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import fedlib as fl
from fedlib import experiment
from fedlib.simulate import Run


def network(norm="none", hidden=8):
    return fl.models.mlp((1, 8, 8), 10, hidden=(hidden,), norm=norm)


@pytest.fixture(scope="module")
def data():
    return fl.data.hold_out(fl.data.some(fl.data.load("digits"), 300, 100), 0.2)


@pytest.fixture
def here(sweeps_here):
    """Sweeps are run in this process, and counted."""
    return sweeps_here(lambda o: (o["progress"], tuple(o["lr"]), tuple(o["seed"]), o["rounds"]))


def plan(data, **changes):
    def parts(seed):
        return fl.partition.n_class(data.y_train, 5, 2, seed=seed)

    given = {"rounds": 4, "lr": [0.03, 0.1], "seed": [100, 101], "local_steps": 2, "batch_size": 8, "device": "cpu"}
    return fl.Plan(network, data, parts, **given | changes)


def test_a_rate_is_chosen_by_other_seeds_and_the_chosen_one_is_run(data, here):
    p = plan(data, tune_seed=[0, 1], tune_rounds=2, evaluate_every=1)
    found = p.run({"plain": {}, "LN": {"norm": "layer"}, "prox": {"algorithm": fl.algorithms.fedprox(0.1)}})
    assert list(found) == ["plain", "LN", "prox"] and len(found) == 3
    assert here[::2] == [(name, (0.03, 0.1), (0, 1), 2) for name in found]
    assert here[1::2] == [(name, (found.best()[name],), (100, 101), 4) for name in found]
    for name, row in found.items():
        assert {lr: len(runs) for lr, runs in row.tuning.items()} == {0.03: 2, 0.1: 2}
        validation = {
            lr: np.mean([100 * r.history["validation"].mean() for r in runs]) for lr, runs in row.tuning.items()
        }
        assert row.tried == pytest.approx(validation) and row.lr == max(validation, key=validation.get)
        assert [run.config["seed"] for run in row.runs] == [100, 101] and row.name == name
    alone = fl.sweep(
        lambda: network(norm="layer"), data, p.parts, rounds=4, lr=[found["LN"].lr], seed=[100, 101], local_steps=2,
        batch_size=8, device="cpu", evaluate_every=1, progress=False,
    )  # fmt: skip
    for run, other in zip(found["LN"].runs, alone, strict=True):
        assert torch.equal(run.weights.w, other.weights.w)


def test_what_chooses_cannot_see_the_test_images(data, here, monkeypatch):
    """With another test set, and with a test column that says the opposite, the same rates are chosen."""
    rates = [0.001, 0.03, 0.3]
    wanted = plan(data, lr=rates).run({"a": {}, "b": {"norm": "layer"}}).best()
    chosen = fl.sweep

    def opposite(*given, **options):
        runs = chosen(*given, **options)
        for run in runs:
            run.history["accuracy"] = 1 - run.history["validation"]
        return runs

    monkeypatch.setattr(experiment, "sweep", lambda *given, **o: opposite(*given, **o | {"progress": False}))
    assert plan(data, lr=rates).run({"a": {}, "b": {"norm": "layer"}}).best() == wanted


def test_what_is_known_is_not_run_again(data, here):
    p = plan(data)
    found = p.run({"plain": {}, "LN": {"norm": "layer"}})
    del here[:]
    again = p.run({"same": {"norm": "none"}, "LN again": {"norm": "layer", "hidden": 8}})
    assert here == [] and again["same"].runs == found["plain"].runs and again["LN again"].lr == found["LN"].lr
    side = p.but(lr=[found["LN"].lr], seed=[101, 102])
    rows = side.run({"LN": {"norm": "layer"}, "wide": {"norm": "layer", "hidden": 12}})
    assert sorted(here) == sorted([("LN", (side.lr[0],), (102,), 4), ("wide", (side.lr[0],), (101, 102), 4)])
    assert rows["LN"].runs[0] is found["LN"].runs[1] and rows["LN"].tried == {}
    del here[:]
    p.but(local_steps=3).run({"plain": {}})
    p.run(
        {"other": {"algorithm": fl.algorithms.fedavgm()}, "parts": {"parts": lambda seed: [range(50), range(50, 90)]}}
    )
    assert len(here) == 2 + 4


def test_rows_that_say_the_same_are_run_once(data, here):
    found = plan(data, lr=[0.1]).run({"a": {}, "b": {"norm": "none"}})
    assert len(here) == 1 and found["a"].runs[0] is found["b"].runs[0]


def test_an_experiment_that_is_left_out_says_so_by_itself(data, here):
    found = plan(data).run({"plain": {}}, when=False)
    assert here == [] and not found and found.best() == {} and found.table().empty and found.seconds == 0
    with pytest.raises(KeyError, match="no row 'plain' was run; there are none"):
        found["plain"]


def history(values, column="validation"):
    return pd.DataFrame({"round": range(1, len(values) + 1), column: values, "accuracy": values})


def made(values, seed=0, diverged=None):
    return Run({"seed": seed}, history(values), pd.DataFrame(), diverged, 1.0, None)


def test_a_choice_is_by_the_mean_of_the_last_five_evaluations():
    assert experiment.level([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(40)
    assert experiment.level([0.5]) == 50 and math.isnan(experiment.level([]))
    assert experiment.choose({0.1: [[0.5, 0.5]], 0.3: [[0.1, 0.8]]}) == 0.1
    assert experiment.choose({0.1: [[0.5], [0.6]], 0.3: [[0.9], []]}) == 0.1  # one of them diverged
    assert experiment.choose({0.3: [[0.5]], 0.1: [[0.5]]}) == 0.1
    assert experiment.choose({0.3: [[]], 0.1: [[]]}) == 0.1


def test_rates_go_on_past_an_end_while_the_best_is_there(data, here, monkeypatch):
    peak = 1.0

    def swept(model, data, parts, algorithm, *, lr, seed, rounds, **_):
        return [
            Run(
                {"lr": rate, "seed": s, "rounds": rounds},
                history([1 - abs(math.log10(rate / peak))] * 5),
                pd.DataFrame(),
                None,
                1.0,
                None,
            )
            for rate in lr
            for s in seed
        ]

    monkeypatch.setattr(experiment, "sweep", swept)
    for widen, best, bound, tried in (
        (0, 0.1, True, [0.03, 0.1]),
        (1, 0.3, True, [0.03, 0.1, 0.3]),
        (3, 1.0, False, [0.03, 0.1, 0.3, 1.0, 3.0]),
        (9, 1.0, False, [0.03, 0.1, 0.3, 1.0, 3.0]),
    ):
        row = plan(data, widen=widen).run({"a": {}})["a"]
        assert (row.lr, row.bound, sorted(row.tried)) == (best, bound, tried)
    assert plan(data, lr=[1.0], widen=2).run({"a": {}})["a"].lr == 1.0


def test_a_row_tells_levels_curves_and_when_it_reached_what():
    runs = [made([0.1, 0.3, 0.5, 0.5, 0.6, 0.7], 7), made([0.2] * 5 + [0.9], 8), made([0.4, 0.5], 9, "diverged")]
    row = experiment.Row("r", {}, 0.1, {}, runs)
    np.testing.assert_allclose(row.levels(), [52, 34, math.nan])
    np.testing.assert_allclose(row.last(), [70, 90, math.nan])
    np.testing.assert_allclose(row.at(2), [30, 20, 50])
    np.testing.assert_allclose(row.at(5), [60, 20, math.nan])
    np.testing.assert_allclose(row.rounds_to(50), [3, 6, 2])
    np.testing.assert_allclose(row.rounds_to(95), [math.inf] * 3)
    assert list(row.curves()) == [7, 8, 9] and row.curves().shape == (6, 3)
    with pytest.raises(ValueError, match="round must be at least 1, the first that was evaluated, got 0"):
        row.at(0)


def test_a_table_has_a_line_for_every_row(data, here):
    found = plan(data).run({"plain": {}, "LN": {"norm": "layer"}})
    table = found.table()
    assert list(table.index) == ["plain", "LN"] and table["seeds"].tolist() == [2, 2]
    assert table.loc["LN", "level"] == pytest.approx(found["LN"].levels().mean())
    assert table.loc["LN", "level_std"] == pytest.approx(found["LN"].levels().std(ddof=1))
    assert found.seconds > 0 and found.runs()["LN"] == found["LN"].runs


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": []}, "lr must hold at least one value"),
        ({"seed": [1, 1]}, "seed must hold at least one value, none twice"),
        ({"tune_seed": [100]}, r"tune_seed must hold none of the seeds that are reported, both have \[100\]"),
        ({"local_step": 3}, "'local_step' is no argument of a sweep. Did you mean 'local_steps'"),
        ({"rounds": 0}, "rounds must be"),
        ({"widen": -1}, "widen must be"),
        ({"tune_rounds": 0}, "tune_rounds must be"),
    ],
)
def test_what_cannot_be_planned_is_refused(data, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(data, **changes)
    with pytest.raises(ValueError, match=message):
        plan(data).but(**changes)


def test_choosing_needs_validation_images():
    bare = fl.data.load("digits")
    with pytest.raises(ValueError, match="a rate is chosen by validation images, and 'digits' has none"):
        plan(bare)
    plan(bare, lr=[0.1])


def test_a_word_that_nobody_knows_is_refused(data, here):
    with pytest.raises(
        ValueError, match=r"a row says \{'nrom': 'layer'\}, which the model does not take: .*Did you mean 'norm'"
    ):
        plan(data).run({"a": {"nrom": "layer"}})
    assert here == []


def test_checkpoints_are_named_by_row_seeds_and_rates(data, here, tmp_path):
    asked = []

    def checkpoint(*words, **more):
        asked.append((words, more))
        return tmp_path / f"{len(asked)}.pt"

    plan(data, checkpoint=checkpoint).run({"plain": {}})
    assert [words for words, _ in asked] == [("plain",), ("plain",)]
    assert [(m["lr"], m["seed"], m["rounds"]) for _, m in asked][0] == ([0.03, 0.1], [0], 4)
    assert len(list(tmp_path.glob("*.pt"))) == 2


@pytest.mark.heavy
def test_side_by_side_in_processes_gives_the_same(data):
    rows = {"plain": {}, "LN": {"norm": "layer"}}
    together, alone = plan(data).run(rows), {name: plan(data).run({name: rows[name]})[name] for name in rows}
    for name in rows:
        for one, other in zip(together[name].runs, alone[name].runs, strict=True):
            assert torch.equal(one.weights.w, other.weights.w)


def test_a_row_has_one_value_of_what_else_could_be_swept(data, here):
    for row in ({"weight_decay": [0.0, 0.5]}, {"clip": [1.0, 2.0]}, {"settings": {"server_lr": [0.1, 1.0]}}):
        name = next(iter(row.get("settings", row)))
        with pytest.raises(ValueError, match=f"row 'a': {name} must have one value, got .*; make a row of each"):
            plan(data).run({"a": {"algorithm": fl.algorithms.fedavgm(), **row}})
    assert here == [] and len(plan(data, lr=[0.1], weight_decay=[0.5]).run({"a": {}})["a"].runs) == 2


def test_a_model_may_take_any_words(data, here):
    def made(**words):
        return network(**words)

    parts = fl.partition.iid(data.y_train, 3)
    given = {"rounds": 1, "lr": [0.1], "seed": [1], "local_steps": 1, "device": "cpu"}
    found = fl.Plan(made, data, parts, **given).run({"a": {"norm": "layer"}, "b": {}})
    assert fl.models.parameters(found["a"].runs[0].model()) > fl.models.parameters(found["b"].runs[0].model())


def test_rows_that_chose_nothing_have_a_table(data, here):
    found = plan(data, lr=[0.1], widen=3).run({"a": {}})
    assert not found["a"].bound and found.table()["rate"].tolist() == [0.1] and found["a"].tried == {}
    assert plan(data, widen=3).run({"a": {"lr": [0.001]}}).best() == {"a": 0.001}  # one rate: nothing is chosen


def test_a_method_without_labels_chooses_nothing_silently(data, here):
    with pytest.raises(ValueError, match="row 'a': .* has no validation accuracy to choose a rate by; give it one"):
        plan(data).run({"a": {"algorithm": fl.algorithms.simclr()}})
    assert len(plan(data, lr=[0.1]).run({"a": {"algorithm": fl.algorithms.simclr()}})["a"].runs) == 2


def test_a_method_without_labels_chooses_by_what_is_measured(data, here):
    def length(net):
        return {"short": -float(sum(p.square().sum() for p in net.parameters()).detach())}

    found = plan(data, by="short", measure=length).run({"a": {"algorithm": fl.algorithms.simclr()}})
    tried = found["a"].tried
    assert len(tried) > 1 and found["a"].lr == max(tried, key=tried.get) and min(tried.values()) < 0
    for column in ("accuracy", "client_accuracy"):
        with pytest.raises(ValueError, match=f"by must be a column that no test image has a part in, got '{column}'"):
            plan(data, by=column)


def test_a_run_that_diverged_has_no_number_after_that_whoever_else_was_run():
    lost = Run({"seed": 1, "evaluate_every": 1}, history([0.1, 0.4]), pd.DataFrame(), "diverged", 1.0, None)
    whole = Run({"seed": 2, "evaluate_every": 1}, history([0.1, 0.4, 0.6]), pd.DataFrame(), None, 1.0, None)
    none = Run({"seed": 3, "evaluate_every": 1}, history([]), pd.DataFrame(), "diverged", 1.0, None)
    for runs in ([lost], [lost, whole], [none, lost, whole]):
        row = experiment.Row("r", {}, 0.1, {}, runs)
        i = runs.index(lost)
        assert math.isnan(row.at(3)[i]) and row.at(2)[i] == pytest.approx(40) and row.at(3).dtype == float
    only = experiment.Row("r", {}, 0.1, {}, [none])
    assert math.isnan(only.at(3)[0]) and only.rounds_to(10)[0] == math.inf and math.isnan(only.levels()[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"algorithm": fl.algorithms.fedprox()}, "algorithm belongs into a row"),
        ({"lr": 0.1}, "lr must be a list of values, got 0.1"),
        ({"seed": 3}, "seed must be a list of values, got 3"),
    ],
)
def test_what_belongs_elsewhere_is_told(data, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(data, **changes)


@pytest.mark.parametrize(
    "rows, message",
    [
        (["a", "b"], "rows must be a dict of a row's name to what differs, got .'a', 'b'."),
        ({"a": None}, "row 'a' must be a dict of what differs, {} where nothing does, got None"),
        (
            {"a": fl.algorithms.fedprox()},
            "row 'a' must be a dict of what differs, {} where nothing does, got Algorithm",
        ),
    ],
)
def test_what_is_no_table_is_refused(data, here, rows, message):
    with pytest.raises(ValueError, match=message):
        plan(data).run(rows)


def test_rows_are_named_by_text_and_methods_are_methods(data, here):
    with pytest.raises(ValueError, match="a row's name must be a text, got 0.1"):
        plan(data).run({0.1: {}})
    with pytest.raises(ValueError, match="row 'a': algorithm must be a method such as fl.algorithms.fedavg"):
        plan(data).run({"a": {"algorithm": fl.algorithms.fedprox}})


def test_rows_that_travel_to_processes_carry_no_runs(data):
    """Runs become known while other rows are still on their way."""
    p = plan(data, lr=[0.1], seed=[100])
    p.run({"plain": {}})
    kept = p.but(model=fl.models.mlp, parts=[torch.arange(9)], rounds=7)
    travelled = pickle.loads(pickle.dumps(kept))
    assert len(kept.known) == 1 and travelled.known == {}
    assert (travelled.rounds, travelled.lr, travelled.options) == (7, [0.1], p.options)


def test_one_by_one_gives_each_row_all_cores_and_the_same_numbers(data, monkeypatch):
    asked = []
    alike = experiment.side_by_side
    monkeypatch.setattr(experiment, "side_by_side", lambda f, keys, **o: asked.append(len(keys)) or alike(f, keys, **o))
    rows = {"plain": {}, "LN": {"norm": "layer"}}
    apart, together = (plan(data, lr=[0.1], seed=[100]).run(rows, one_by_one=one) for one in (True, False))
    assert asked == [1, 1, 2]
    for name in rows:
        assert torch.equal(apart[name].runs[0].weights.w, together[name].runs[0].weights.w)


@pytest.mark.parametrize("lr, step, expected", [(0.01, 1, 0.03), (0.03, 1, 0.1), (0.3, 1, 1.0), (0.1, -1, 0.03)])
def test_rates_lie_on_half_decades(lr, step, expected):
    assert fl.experiment.next_rate(lr, step) == expected

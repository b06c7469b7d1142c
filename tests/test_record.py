"""Records that grow row by row."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest

import fedlib as fl
from fedlib.book import card, claims, record, run
from fedlib.book.record import Record


@pytest.fixture(scope="module")
def data():
    return fl.data.hold_out(fl.data.some(fl.data.load("digits"), 300, 100), 0.2)


@pytest.fixture
def ran(sweeps_here, monkeypatch):
    """Names of the sweeps, run here, in a tree without changes."""
    monkeypatch.setattr(card, "commit", lambda *_: {"commit": "a" * 40, "clean": True})
    monkeypatch.setattr(card, "versions", lambda: {"fedlib": "0.1.0"})
    return sweeps_here(lambda options: options["progress"])


def plan(data, record, **changes):
    given = {"rounds": 4, "lr": [0.03, 0.1], "seed": [100, 101], "local_steps": 2, "batch_size": 8, "device": "cpu"}
    return fl.Plan(
        lambda norm="none": fl.models.mlp(data.shape, 10, hidden=(8,), norm=norm), data,
        lambda seed: fl.partition.n_class(data.y_train, 5, 2, seed=seed), record=record, **given | changes,
    )  # fmt: skip


ROWS = {"plain": {}, "LN": {"norm": "layer"}}


def test_a_finished_row_is_found_in_a_new_process_and_not_run_again(data, ran, tmp_path):
    found = plan(data, Record("02_x", "cpu", tmp_path)).run({"plain": {}}, "methods")
    assert ran == ["plain"] * 3  # tuning, the chosen rate, and the three rounds by which it can be replayed
    del ran[:]
    again = plan(data, Record("02_x", "cpu", tmp_path)).run(ROWS, "methods")
    assert ran == ["LN"] * 3
    for name in ("levels", "last"):
        np.testing.assert_allclose(getattr(again["plain"], name)(), getattr(found["plain"], name)(), rtol=1e-5)
    assert again["plain"].lr == found["plain"].lr and again["plain"].tried == pytest.approx(found["plain"].tried, 1e-5)
    assert again["plain"].bound == found["plain"].bound
    np.testing.assert_allclose(again["plain"].rounds_to(20), found["plain"].rounds_to(20))
    assert again.table()["seeds"].tolist() == [2, 2]
    assert Record("02_x", "cpu", tmp_path).seconds == pytest.approx(found.seconds + again.seconds, rel=0.5)
    assert again["plain"].runs[0].clients.shape == (4, 0)  # nobody has test images of his own
    assert again["LN"].runs[0].model() is not None
    with pytest.raises(ValueError, match="this run was recorded, and a record keeps no weights"):
        again["plain"].runs[0].model()
    content = json.loads((tmp_path / "02_x.cpu.json").read_text(encoding="utf-8"))
    assert list(content["rows"]) == ["methods: plain", "methods: LN"]
    made = content["rows"]["methods: LN"]["made"]
    assert made["commit"] == "a" * 40 and made["digests"]["code"] == card.code() and made["wall_seconds"] > 0


@pytest.mark.parametrize(
    "changes",
    [{"rounds": 5}, {"lr": [0.1]}, {"seed": [100, 102]}, {"tune_seed": [3]}, {"local_steps": 3}, {"widen": 1}],
)
def test_a_row_of_something_else_is_run(data, ran, tmp_path, changes):
    plan(data, Record("02_x", "cpu", tmp_path)).run({"plain": {}}, "methods")
    del ran[:]
    plan(data, Record("02_x", "cpu", tmp_path), **changes).run({"plain": {}}, "methods")
    assert ran


def test_where_it_is_computed_and_under_which_table_name(data, ran, tmp_path):
    plan(data, Record("02_x", "cpu", tmp_path)).run({"plain": {}}, "methods")
    del ran[:]
    plan(data, Record("02_x", "cpu", tmp_path), engine="clients", workers=1).run({"plain": {}}, "methods")
    assert ran == []
    plan(data, Record("02_x", "cpu", tmp_path)).run({"plain": {}}, "ablations")
    assert ran


@pytest.mark.parametrize("what", ["test_parts", "comparability", "closure"])
def test_what_decides_a_result_besides(data, ran, tmp_path, monkeypatch, what):
    parts = fl.partition.iid(data.y_train, 3)

    def of(width, tests):
        return fl.Plan(
            lambda: fl.models.mlp(data.shape, 10, hidden=(width,), norm="batch"), data, parts, rounds=2, lr=[0.1],
            seed=[100], local_steps=2, batch_size=8, device="cpu",
            test_parts=fl.partition.iid(data.y_test, 3, seed=tests), record=Record("02_x", "cpu", tmp_path),
        ).run({"FedBN": {"algorithm": fl.algorithms.fedbn()}})  # fmt: skip

    of(8, 0)
    del ran[:]
    of(8, 0)
    assert ran == []
    if what == "comparability":
        monkeypatch.setattr(card, "COMPARABILITY", 99)
    of(12 if what == "closure" else 8, 1 if what == "test_parts" else 0)
    assert ran


def test_what_clients_reach_is_kept(data, ran, tmp_path):
    def test_parts(seed):
        return fl.partition.iid(data.y_test, 5, seed=seed)

    first, again = (
        plan(data, Record("02_x", "cpu", tmp_path), lr=[0.1], test_parts=test_parts).run({"plain": {}})["plain"]
        for _ in range(2)
    )
    assert len(ran) == 2 and again.runs[1].clients.shape == (4, 5)
    pd.testing.assert_frame_equal(again.runs[1].clients, first.runs[1].clients, rtol=1e-5, check_index_type=False)
    np.testing.assert_allclose(again.last("client_accuracy"), first.last("client_accuracy"), rtol=1e-5)


def test_rows_that_say_the_same_are_both_kept_and_two_writers_keep_what_the_other_wrote(data, ran, tmp_path):
    one, two = (Record("02_x", "cpu", tmp_path) for _ in range(2))
    plan(data, one, lr=[0.1]).run({"a": {}, "b": {"norm": "none"}}, "t")
    plan(data, two, lr=[0.1]).run({"c": {"norm": "layer"}}, "t")
    rows = json.loads((tmp_path / "02_x.cpu.json").read_text(encoding="utf-8"))["rows"]
    assert list(rows) == ["t: a", "t: b", "t: c"]
    del ran[:]
    plan(data, Record("02_x", "cpu", tmp_path), lr=[0.1]).run({"b": {}, "c": {"norm": "layer"}}, "t")
    assert ran == []


def test_a_commit_that_is_checked_out_meanwhile_is_not_put_on_the_card(data, ran, tmp_path, monkeypatch):
    record = Record("02_x", "cpu", tmp_path)
    monkeypatch.setattr(card, "commit", lambda *_: {"commit": "b" * 40, "clean": True})
    with pytest.raises(ValueError, match="plain is not recorded: while it was trained b+ was checked out"):
        plan(data, record, lr=[0.1]).run({"plain": {}})


def test_other_labels_or_another_partition_are_another_row(data, ran, tmp_path):
    plan(data, Record("02_x", "cpu", tmp_path), lr=[0.1]).run({"plain": {}})
    del ran[:]
    one_label = data.y_train.clone()
    one_label[0] = (one_label[0] + 1) % 10
    changed = dataclasses.replace(data, y_train=one_label)
    plan(changed, Record("02_x", "cpu", tmp_path), lr=[0.1]).run({"plain": {}})
    assert ran == ["plain"] * 2
    del ran[:]
    other = {"parts": lambda seed: fl.partition.iid(data.y_train, 5, seed=seed)}
    plan(data, Record("02_x", "cpu", tmp_path), lr=[0.1]).run({"plain": other})
    assert ran == ["plain"] * 2


def test_a_row_that_nobody_could_repeat_is_not_kept(data, ran, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "commit", lambda *_: {"commit": "a" * 40, "clean": False})
    with pytest.raises(ValueError, match="02_x.cpu, plain, would not be recorded: .* not committed"):
        plan(data, Record("02_x", "cpu", tmp_path), lr=[0.1]).run({"plain": {}})
    assert not list(tmp_path.iterdir()) and ran == []  # told before it is trained
    plan(data, Record("02_x", "custom", tmp_path), lr=[0.1]).run({"plain": {}})
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "02_x.cpu.json").write_text('{"rows": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="02_x.cpu.json is no record of rows"):
        Record("02_x", "cpu", tmp_path)


def test_results_of_chapters_do_not_see_the_rows(tmp_path, monkeypatch):
    assert Record("02_x", "cpu").file.parent.name == "rows"
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "02_x.cpu.json").write_text("{}", encoding="utf-8")
    assert claims.load_results(tmp_path) == {}


# --- experiments without their notebook, and replays ---

PARAMETERS = "rounds = 3\nlr = 0.1\nseeds = [100, 101]\nlabel = None\n"
EXPERIMENT = """
data = fl.data.some(fl.data.load("digits"), 200, 50)
if label is not None:
    data.y_train[0] = label


def network(norm="none"):
    return fl.models.mlp(data.shape, 10, hidden=(8,), norm=norm)


plan = fl.Plan(network, data, lambda s: fl.partition.iid(data.y_train, 4, seed=s), rounds=rounds, lr=[lr], seed=seeds,
               local_steps=2, batch_size=8, device="cpu", record=record)
found = plan.run({"plain": {}, "LN": {"norm": "layer"}}, "methods")
"""


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    book = tmp_path / "book"
    (book / "params").mkdir(parents=True)
    monkeypatch.setattr(claims, "book_folder", lambda: book)

    def write(experiment=EXPERIMENT, **preset):
        cells = [("parameters", PARAMETERS), ("", "import IPython, matplotlib; 1 / 0"), ("experiment", experiment)]
        content = {"cells": [{"metadata": {"tags": [tag]}, "source": source} for tag, source in cells]}
        (book / "02_x.ipynb").write_text(json.dumps(content), encoding="utf-8")
        (book / "params" / "02_x.quick.yaml").write_text(json.dumps({"rounds": 3, **preset}), encoding="utf-8")
        return book

    return write


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_experiments_run_without_their_notebook_and_are_replayed(ran, chapter, capsys):
    chapter()
    assert run.main(["02_x"]) == 0 and ran == ["plain", "plain", "LN", "LN"]  # each once more, for three rounds
    assert lines(capsys) == ["methods: plain: recorded", "methods: LN: recorded"]
    del ran[:]
    assert run.main(["02_x"]) == 0 and ran == [] and lines(capsys)
    assert run.main(["02_x", "--replay"]) == 0 and ran == ["plain", "LN"]
    assert lines(capsys) == ["methods: plain: same", "methods: LN: same"]


def test_one_yaml_value_or_one_label_makes_a_row_stale(ran, chapter, capsys):
    chapter()
    run.main(["02_x"])
    lines(capsys)
    chapter(rounds=4)
    assert run.main(["02_x", "--replay"]) == 1
    assert lines(capsys) == ["methods: plain: stale: rounds differ", "methods: LN: stale: rounds differ"]
    label = int((fl.data.some(fl.data.load("digits"), 200, 50).y_train[0] + 1) % 10)
    chapter(label=label)
    assert run.main(["02_x", "--replay"]) == 1
    assert lines(capsys)[0] == "methods: plain: stale: model, data differ"


def test_code_that_changes_numbers_makes_a_row_stale_and_other_code_does_not(ran, chapter, capsys, monkeypatch):
    chapter()
    run.main(["02_x"])
    lines(capsys)
    monkeypatch.setattr(card, "code", lambda: "another")
    assert run.main(["02_x", "--replay"]) == 0 and lines(capsys)[0] == "methods: plain: same"
    draw = fl.schedule.local_batches
    monkeypatch.setattr(fl.schedule, "local_batches", lambda *given, **how: draw(*given, **how)[::-1])
    assert run.main(["02_x", "--replay"]) == 1
    assert re.fullmatch(r"methods: plain: stale: the first rounds differ by \de[+-]\d\d", lines(capsys)[0])


def test_a_row_that_is_not_recorded_is_not_trained_by_a_replay(ran, chapter, capsys):
    chapter(EXPERIMENT.replace('"plain": {}, ', ""))
    run.main(["02_x"])
    lines(capsys)
    del ran[:]
    chapter()
    assert run.main(["02_x", "--replay"]) == 0 and ran == ["LN"]
    assert lines(capsys) == ["methods: plain: not recorded", "methods: LN: same"]


def test_rounding_agrees():
    assert record._agree([1.0, 2.0], [1.0, 2.0]) == "same"
    assert record._agree([1.0, 2.0], [1.0, 2.0001]) == "agrees"
    assert record._agree([1.0, 2.0], [1.0, 2.001]).startswith("stale: the first rounds differ by 5e-04")


def test_a_chapter_without_such_cells_or_with_another_parameter_is_refused(chapter, tmp_path):
    book = chapter(nonsense=3)
    with pytest.raises(ValueError, match="parameter 'nonsense' does not exist in .*02_x.ipynb"):
        run.main(["02_x"])
    (book / "02_x.ipynb").write_text(json.dumps({"cells": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="02_x.ipynb has no cell that is tagged 'parameters'"):
        run.main(["02_x"])


def test_a_row_is_known_by_what_its_cells_say_not_by_their_layout_or_the_place_of_the_code(ran, chapter, capsys):
    chapter()
    run.main(["02_x"])
    assert ran == ["plain", "plain", "LN", "LN"]
    del ran[:]
    other = EXPERIMENT.replace("def network(", "# a comment\n\n\ndef network(\n    ").replace(
        "return fl.models.mlp(data.shape, 10,", "return fl.models.mlp(\n        data.shape,\n        10,"
    )
    chapter(other)
    assert run.main(["02_x"]) == 0 and ran == []
    chapter(EXPERIMENT.replace("hidden=(8,)", "hidden=(9,)"))
    assert run.main(["02_x"]) == 0 and ran == ["plain", "plain", "LN", "LN"]


def test_a_recording_goes_on_from_its_checkpoints(ran, chapter, tmp_path):
    chapter(EXPERIMENT.replace("record=record", "record=record, checkpoint=checkpoint"))
    assert run.main(["02_x", "--checkpoints", str(tmp_path / "kept")]) == 0
    assert [file.name[:6] for file in sorted((tmp_path / "kept").glob("*.pt"))] == ["02-LN-", "02-pla"]

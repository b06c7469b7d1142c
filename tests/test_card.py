"""Run cards, and claims whose verdict follows from their values."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

import fedlib as fl
from fedlib import fingerprint
from fedlib.book import bars, card, chapter, claims, compare

BARS = {
    "speed": bars.Bar(
        "speed", "02_x", "points", "at least", 15, "half", "2026-11-28", 5, "more than noise", rounding={"cpu": 5.0}
    ),
    "end/LN": bars.Bar("end/LN", "02_x", "points", "at least", 0, "any", "2026-11-28", known=True),
    "end/FN": bars.Bar("end/FN", "02_x", "points", "at least", 0, "any", "2026-11-28"),
    "same": bars.Bar("same", "02_x", "difference", "at most", 1e-9, "rounding", "2026-11-28", exact=True),
}


def measured(id, values, **more):
    return claims.measured(id, "02_x", "LN helps.", "+32 points", "so much", values, known=BARS, **more)


def test_the_verdict_of_a_measured_claim_follows_from_its_values():
    values = [20.0, 22.0, 21.0, 19.0]
    claim = measured("speed", values)
    (part,) = claim.parts
    assert claim.verdict == part["verdict"] == "holds" and part["values"] == values
    assert part["interval"] == pytest.approx(list(bars.interval(values))) and part["reason"] == "half"
    assert measured("speed", [20.0]).verdict == "undecided"
    (rounded,) = measured("speed", values, preset="cpu").parts
    assert (rounded["verdict"], rounded["rounding"], part["rounding"]) == ("holds in part", 5.0, 0.0)
    assert measured("speed", values, preset="quick").verdict == "holds"
    assert measured("same", 3e-15).verdict == "holds"
    both = measured("end", {"LN": [1.0, 1.1, 1.2], "FN": [-1.0, 1.0, 0.5]})
    assert both.verdict == "undecided" and [part["verdict"] for part in both.parts] == ["holds", "undecided"]
    half = measured("end", {"LN": [1.0, 2.0], "FN": None})
    assert half.verdict == "not run" and half.parts[1]["verdict"] == "not run"
    for nothing in (None, [], {}, np.zeros(0)):
        assert measured("speed", nothing).verdict == "not run" and measured("speed", nothing).parts == ()


def test_a_claim_without_its_bars_is_refused():
    with pytest.raises(ValueError, match="claim 'none' has no bar in bars.yaml: commit one, with its reason, before"):
        measured("none", [1.0])
    with pytest.raises(ValueError, match="claim 'end' has bars for end/LN, end/FN, but values for end/LN"):
        measured("end", {"LN": [1.0, 2.0]})


def test_a_claim_says_what_it_was_judged_by(monkeypatch, capsys):
    monkeypatch.setattr(claims, "the_bars", lambda: BARS)
    shown = []
    monkeypatch.setattr(chapter, "display", lambda thing: shown.append(thing.data))
    verdicts = chapter.Verdicts("02_x")
    verdicts.measure("speed", "LN helps.", "+32 points", "so much", [20.0, 22.0, 21.0, 19.0])
    verdicts.measure("end", "LN helps.", "+32 points", "so much", {"LN": [1.0, 2.0], "FN": [2.0, 2.5]})
    verdicts.measure("same", "The same.", "exactly", "so much", 3e-15)
    assert "<li>Interval: 18.4 to 22.6, 4 seeds. Bar: at least 15 (in part 5): holds.</li>" in shown[0]
    assert "At least 15: half; in part 5: more than noise." in shown[0]
    assert "<li>LN: " in shown[1] and "LN: points" in shown[1]
    assert "set after earlier results were known" in shown[1]
    assert [one.verdict for one in verdicts.claims] == ["holds", "undecided", "holds"]
    verdicts.expect({"speed": "holds", "end": "undecided"})


@pytest.mark.parametrize(
    "ends, told",
    [
        ((-20.91, 12.04), "-20.9 to 12.0"),
        ((0.0012, 0.0345), "0.0012 to 0.0345"),
        ((1234.5, 2000.2), "1234 to 2000"),
        ((0.0, 0.0), "0 to 0"),
        ((-math.inf, math.inf), "-∞ to ∞"),
        ((math.nan, math.nan), "nan to nan"),
    ],
)
def test_both_ends_of_an_interval_have_as_many_decimals(ends, told):
    assert chapter._alike(*ends) == told


def recorded(folder, values, comparability=None, **more):
    path = claims.save_results("02_x", "custom", config={}, claims=[measured("speed", values)], folder=folder, **more)
    content = json.loads(path.read_text(encoding="utf-8"))
    if comparability is not None:
        content["made"]["comparability"] = comparability
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_records_keep_values_bars_and_card(tmp_path):
    data = fl.data.load("digits")
    run = fl.run(
        lambda: fl.models.mlp(data.shape, 10, hidden=(4,)), data, lambda seed: fl.partition.iid(data.y_train, 2, seed),
        rounds=1, lr=0.1, local_steps=1, device="cpu", progress=False,
    )  # fmt: skip
    content = json.loads(
        recorded(tmp_path, [20.0, 22.0, math.inf], runs=[run], data=[data]).read_text(encoding="utf-8")
    )
    (part,) = content["claims"][0]["parts"]
    assert part["values"] == [20.0, 22.0, None] and part["bar"] == 15
    made = content["made"]
    assert made["digests"]["data"] == {"digits": fingerprint.of_data(data)}
    assert made["digests"]["partition"] == [run.config["parts"]] and made["digests"]["code"] == card.code()
    assert made["engine"] == [run.config["engine"]] and made["comparability"] == card.COMPARABILITY
    assert claims.load_results(tmp_path)["02_x"]["custom"]["claims"][0]["verdict"] == "undecided"


def git(folder, *words):
    subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)


def test_a_card_names_the_commit_and_whether_it_is_what_was_run(tmp_path):
    (tmp_path / "fedlib").mkdir()
    (tmp_path / "fedlib" / "a.py").write_text("x = 1\n", encoding="utf-8")
    assert card.commit("02_x", tmp_path) == {"commit": None, "clean": None}
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    found = card.commit("02_x", tmp_path)
    assert len(found["commit"]) == 40 and found["clean"] is True
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    assert card.commit("02_x", tmp_path)["clean"] is True  # nothing that a run depends on
    before = card.code.__wrapped__(tmp_path)
    (tmp_path / "fedlib" / "a.py").write_text('"""A docstring."""\nx = 1  # a comment\n', encoding="utf-8")
    assert card.commit("02_x", tmp_path)["clean"] is False and card.code.__wrapped__(tmp_path) == before
    (tmp_path / "fedlib" / "a.py").write_text("x = 2\n", encoding="utf-8")
    assert card.code.__wrapped__(tmp_path) != before
    inside = tmp_path / "venv" / "site-packages"
    inside.mkdir(parents=True)
    assert card.commit("02_x", inside) == {"commit": None, "clean": None}  # another repository's commit is not ours


def test_a_card_says_what_has_changed_since(tmp_path, monkeypatch):
    file = tmp_path / "02_x.cpu.yaml"
    file.write_text("rounds: 2  # a comment\nlr: [0.1]\n", encoding="utf-8")
    made = card.made("02_x", "cpu", file)
    assert card.state(made, file) is None and card.state({"versions": {}}, file) == "no run card"
    file.write_text("lr: [0.1]\nrounds: 2\n", encoding="utf-8")
    assert card.state(made, file) is None
    file.write_text("rounds: 3\nlr: [0.1]\n", encoding="utf-8")
    assert card.state(made, file) == card.state(made, None) == "stale"
    file.write_text("rounds: 2\nlr: [0.1]\n", encoding="utf-8")
    monkeypatch.setattr(card, "code", lambda: "another")
    assert card.state(made, file) == "older code"
    monkeypatch.setattr(card, "COMPARABILITY", 99)
    assert card.state(made, file) == "stale"


def test_what_nobody_could_repeat_is_not_recorded(tmp_path, monkeypatch):
    fine = {"versions": {"fedlib": "0.1.0"}, "commit": "a" * 40, "clean": True}
    assert card.unrepeatable(fine) is None
    assert "not installed" in card.unrepeatable(fine | {"versions": {"fedlib": "not installed"}})
    assert card.unrepeatable(fine | {"commit": None, "clean": None}) is None  # a notebook alone
    assert "not committed" in card.unrepeatable(fine | {"clean": False})
    monkeypatch.setattr(claims, "book_folders", lambda name: [tmp_path, tmp_path])
    monkeypatch.setattr(card, "commit", lambda *_: {"commit": "a" * 40, "clean": False})
    monkeypatch.setattr(card, "versions", lambda: {"fedlib": "0.1.0"})
    with pytest.raises(ValueError, match="02_x.cpu is not recorded: .* not committed; record from a second clone"):
        claims.save_results("02_x", "cpu", config={})
    claims.save_results("02_x", "quick", config={})
    assert not list(tmp_path.iterdir())
    claims.save_results("02_x", "custom", config={})
    monkeypatch.setattr(card, "commit", lambda *_: {"commit": "a" * 40, "clean": True})
    claims.save_results("02_x", "cpu", config={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["02_x.cpu.json", "02_x.custom.json"]


def test_rounding_is_what_two_records_of_the_same_runs_differ_by(tmp_path, capsys):
    paths = []
    for name, values in {"a": [20.0, 22.0, 21.0], "b": [20.5, 22.5, 21.4], "c": [20.0, math.nan, 21.0]}.items():
        (tmp_path / name).mkdir()
        paths.append(str(recorded(tmp_path / name, values)))
    assert compare.main(["--rounding", *paths[:2]]) == 0
    ends = np.subtract(bars.interval([20.0, 22.0, 21.0]), bars.interval([20.5, 22.5, 21.4]))
    assert capsys.readouterr().out == "speed: {custom: 0.48}\n" and 0.47 < np.abs(ends).max() < 0.48
    assert compare.main(["--rounding", paths[0], paths[2]]) == 0
    assert capsys.readouterr().out == "speed: {custom: unknown}\n"
    (tmp_path / "rows.json").write_text('{"rows": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.json is not a result written by save_results: KeyError\('name'\)"):
        compare.main([paths[0], str(tmp_path / "rows.json")])
    one, other = (json.loads(Path(path).read_text(encoding="utf-8")) for path in paths[:2])
    with pytest.raises(ValueError, match="records must be of the same runs, got seeds"):
        compare.apart(one, {**other, "seeds": [9]})


def test_two_records_are_compared_by_their_intervals(tmp_path, capsys):
    paths = []
    for name, values in {
        "a": [20.0, 22.0, 21.0],
        "b": [20.5, 21.0, 22.0],
        "c": [16.0, 17.0, 18.0],
        "d": [1, 2, 3],
    }.items():
        (tmp_path / name).mkdir()
        paths.append(recorded(tmp_path / name, values))
    same, near, far = ([str(paths[0]), str(path)] for path in paths[1:])
    assert compare.main(same) == 0 and capsys.readouterr().out == "nothing has moved\n"
    assert compare.main(near) == 1
    assert "speed: holds -> undecided" in (out := capsys.readouterr().out) or "speed: 21 [" in out
    assert compare.main(far) == 1 and "speed: holds -> does not hold" in capsys.readouterr().out
    (tmp_path / "f").mkdir()
    alike = str(recorded(tmp_path / "f", [2 / 3] * 10))
    assert compare.main([alike, alike]) == 0  # a record has six digits
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    content["claims"][0]["parts"] = []
    (tmp_path / "less.json").write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert compare.main([str(paths[0]), str(tmp_path / "less.json")]) == 1
    assert "speed: only in the first" in capsys.readouterr().out
    (tmp_path / "e").mkdir()
    other = recorded(tmp_path / "e", [20.0, 22.0, 21.0], comparability=1)
    with pytest.raises(ValueError, match="must not be compared: comparability 2 and 1 on their cards"):
        compare.main([str(paths[0]), str(other)])

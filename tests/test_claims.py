import json
import math

import numpy as np
import pandas as pd
import pytest

from fedlib.book import claims
from fedlib.book.claims import Claim

GOOD = dict(id="one-class", chapter="02_x", statement="LN helps.", paper="+32.2 points (Table 1)", measured=21.3)


def save(folder, preset="quick", verdict="holds", **changes):
    return claims.save_results(
        "02_x",
        preset,
        folder=folder,
        claims=[Claim(**{**GOOD, **changes}, verdict=verdict)],
        seeds=[0, 1],
        config={"data": "digits", "rounds": 2000},
        wall_time=840,
        tables={"t": pd.DataFrame({"a": [1.0, math.nan]})},
        curves={"LN": [pd.DataFrame({"round": [1, 2], "accuracy": [0.5, np.inf]})]},
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"verdict": "true"}, "verdict of claim 'one-class' must be one of holds,"),
        ({"id": "One class"}, "id must be lower-case words"),
        ({"paper": " "}, "paper of claim 'one-class' must not be empty"),
        ({"measured": math.nan}, "cannot be said to hold"),
    ],
)
def test_bad_claims_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Claim(**{**GOOD, "verdict": "holds", **changes})


def test_results_are_strict_json_with_short_lists_on_a_line(tmp_path):
    text = save(tmp_path).read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["curves"]["LN"][0] == {"round": [1, 2], "accuracy": [0.5, None]}
    assert content["tables"]["t"] == {"a": [1.0, None]}
    assert '"seeds": [0, 1],' in text
    assert {"cpu", "cores", "gpu"} == set(content["made"]["hardware"])
    assert [path.name for path in tmp_path.iterdir()] == ["02_x.quick.json"]


def test_the_same_result_leaves_the_file_alone(tmp_path):
    path = save(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('"wall_seconds": 840', '"wall_seconds": 1'))
    before = path.read_text(encoding="utf-8")
    save(tmp_path)
    assert path.read_text(encoding="utf-8") == before
    save(tmp_path, measured=3.0, verdict="does not hold")
    assert '"wall_seconds": 840' in path.read_text(encoding="utf-8")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path)
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, measured=1.0)
    assert path.read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="preset must be one of quick, cpu, colab, paper or custom, got 'papr'"):
        save(tmp_path, preset="papr")
    claim = Claim(**GOOD, verdict="holds")
    with pytest.raises(ValueError, match="must be unique"):
        claims.save_results("02_x", "quick", config={}, claims=[claim, claim], folder=tmp_path)
    (tmp_path / "broken.json").write_text('{"name": "x"', encoding="utf-8")
    with pytest.raises(ValueError, match="broken.json is not a result"):
        claims.load_results(tmp_path)


def test_scoreboard_lets_the_largest_preset_decide(tmp_path):
    save(tmp_path)
    save(tmp_path, "paper", verdict="holds in part", measured="+9 points")
    save(tmp_path, "custom", verdict="does not hold")
    row = claims.scoreboard(tmp_path).loc["one-class"]
    assert (row["quick"], row["colab"], row["paper"]) == ("21.3", "", "+9 points")
    assert (row["largest"], row["verdict"]) == ("paper", "holds in part")
    assert row["colab_verdict"] == "not run"
    assert claims.summary(tmp_path) == "Of 1 claim, 1 holds in part."


def test_claims_not_run_and_no_results(tmp_path):
    assert claims.summary(tmp_path) == "No claim has been put to the test yet."
    save(tmp_path, verdict="not run", measured="")
    row = claims.scoreboard(tmp_path).loc["one-class"]
    assert (row["largest"], row["quick"], row["verdict"]) == ("", "", "not run")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("3e-16 after 20 rounds", "3·10⁻¹⁶ after 20 rounds"),
        ("0e+00, 5.0e+00 and 1.5e+03", "0, 5.0 and 1.5·10³"),
        ("-6.8 points, (-1), LN-G -2", "−6.8 points, (−1), LN-G −2"),
        ("2026-11-22, 10-12, a-1", "2026-11-22, 10-12, a-1"),
        ("93.0 ± 2.6 %, β = 0.1", "93.0\u00a0±\u00a02.6\u00a0%, β\u00a0=\u00a00.1"),
        ("x = y, e+f", "x = y, e+f"),
    ],
)
def test_numbers_are_typeset(text, shown):
    assert claims.typeset(text) == shown


def test_provenance_names_data_seeds_rounds_machine_and_time(tmp_path):
    save(tmp_path)
    line = claims.provenance(claims.load_results(tmp_path)["02_x"]["quick"])
    assert line.startswith("digits, 2 seeds, 2,000 rounds, ")
    assert line.endswith(", 14 min")


def test_paper_beside_ours():
    table = claims.beside({"LN": 87.2, "FN": None}, {"LN": [77.0, 79.0], "GN": 70})
    assert list(table.index) == ["LN", "FN", "GN"]
    assert table.loc["LN", "difference"] == pytest.approx(-9.2)
    assert table.loc["LN", "spread"] == pytest.approx(2**0.5)
    assert table.loc["FN", "seeds"] == 0


def test_mean_and_spread_as_text():
    assert claims.mean_std([80.0, 82.0]) == "81.0 ± 1.4 %"
    assert claims.mean_std([80.0]) == "80.0 %"
    with pytest.raises(ValueError, match="must not be empty"):
        claims.mean_std([])


def test_what_is_recorded_can_be_had_as_tables():
    run = {"round": [1, 2], "accuracy": [0.5, None]}
    claim = {"id": "a", "verdict": "holds", "measured": "+2", "parts": [{"values": [1.0, 2.0]}], "paper": "..."}
    result = {
        "curves": {"LN": [run, run], "none": run},
        "tables": {"rates": {"LN": {"0.1": [90.0]}}},
        "claims": [claim],
    }
    curves = claims.curves_frame(result)
    assert list(curves.columns) == ["curve", "run", "round", "accuracy"] and len(curves) == 6
    assert curves["run"].tolist() == [0, 0, 1, 1, 0, 0] and curves["round"].tolist() == [1, 2] * 3
    lines = dict(claims.tables_frame(result).itertuples(index=False))
    assert lines == {
        "tables / rates / LN / 0.1 / 0": 90.0, "claims / a / verdict": "holds", "claims / a / measured": "+2",
        "claims / a / parts / 0 / values / 0": 1.0, "claims / a / parts / 0 / values / 1": 2.0,
    }  # fmt: skip
    assert claims.curves_frame({**result, "curves": {}}).empty

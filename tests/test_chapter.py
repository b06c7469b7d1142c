import re
import time

import pandas as pd
import pytest
import yaml

from fedlib import algorithms
from fedlib.book import chapter, claims

SPEC = {
    "preset": ("quick", "colab", "paper"),
    "rounds": chapter.integer(1),
    "lr": chapter.real(above=0),
    "seeds": chapter.many(int),
    "clip": chapter.optional(chapter.real(above=0)),
}
DEFAULTS = {"preset": "quick", "rounds": 30, "lr": 0.1, "seeds": [0, 1], "clip": None}


def check(tmp_path=None, **injected):
    """What a notebook does: set-up, parameters cell, the cell that papermill injects."""
    namespace = {"np": object(), "_i1": "", "In": []}
    chapter.begin(namespace)
    namespace.update({**DEFAULTS, "_i2": "", **injected})
    return chapter.check_parameters(namespace, chapter="02_x", params=tmp_path or "nowhere", **SPEC)


def test_good_parameters_pass():
    assert check() == "quick"
    assert check(preset="paper", rounds=1, clip=1) == "paper"


@pytest.mark.parametrize(
    "injected, message",
    [
        ({"round": 5}, "unknown parameter 'round' = 5. Did you mean 'rounds'?"),
        ({"zzz": 5}, "unknown parameter 'zzz' = 5. Known parameters: clip, lr, preset, rounds, seeds"),
        ({"np": 5}, "unknown parameter 'np' = 5"),
        ({"preset": "papr"}, "parameter 'preset' must be one of 'quick', 'colab', 'paper', got 'papr'"),
        ({"rounds": 0}, "parameter 'rounds' must be a whole number of at least 1, got 0"),
        ({"rounds": True}, "parameter 'rounds' must be a whole number"),
        ({"lr": float("nan")}, "parameter 'lr' must be a finite number above 0, got nan"),
        ({"lr": "1e-3"}, "parameter 'lr' must be a finite number above 0, got '1e-3'"),
        ({"seeds": []}, "parameter 'seeds' must be a list, not empty, each of a whole number, got"),
        ({"seeds": [0.5]}, "parameter 'seeds' must be a list"),
        ({"clip": -1}, "parameter 'clip' must be None or a finite number above 0, got -1"),
    ],
)
def test_bad_parameters_are_named(injected, message):
    with pytest.raises(ValueError) as error:
        check(**injected)
    assert message in str(error.value)


def test_begin_must_come_first():
    with pytest.raises(RuntimeError, match="call begin"):
        chapter.check_parameters(dict(DEFAULTS), chapter="02_x", **SPEC)


def test_a_declared_parameter_needs_a_default():
    namespace = {}
    chapter.begin(namespace)
    with pytest.raises(ValueError, match="parameter 'preset' is declared but has no default"):
        chapter.check_parameters(namespace, chapter="02_x", **SPEC)


def test_hand_picked_settings_are_called_custom(tmp_path):
    (tmp_path / "02_x.quick.yaml").write_text(yaml.safe_dump(DEFAULTS))
    assert check(tmp_path) == "quick"
    assert check(tmp_path, seeds=(0, 1)) == "quick"
    assert check(tmp_path, rounds=31) == "custom"


def test_where_results_go_does_not_make_a_preset_custom(tmp_path):
    (tmp_path / "02_x.quick.yaml").write_text(yaml.safe_dump({**DEFAULTS, "save": False}))
    spec = {**SPEC, "save": bool}
    namespace = {}
    chapter.begin(namespace)
    namespace.update(DEFAULTS, save=True)
    assert chapter.check_parameters(namespace, chapter="02_x", params=tmp_path, **spec) == "quick"


def test_verdicts_are_expected_in_either_direction():
    verdicts = chapter.Verdicts("02_x")
    verdicts.judge("a", "A is above B.", "+3 (Table 1)", "+4 points", "holds")
    verdicts.judge("b", "B is above C.", "+1 (Table 1)", "-1 points", "does not hold")
    verdicts.expect({"a": "holds", "b": "does not hold"})
    verdicts.expect({"a": ("holds", "holds in part")})
    with pytest.raises(AssertionError, match=r"b: does not hold \(-1 points\), expected holds or holds in part"):
        verdicts.expect({"b": ("holds", "holds in part")})
    with pytest.raises(AssertionError, match=r"b: does not hold \(-1 points\), expected holds; c: not judged"):
        verdicts.expect({"a": "holds", "b": "holds", "c": "holds"})
    assert list(verdicts.table().data["verdict"]) == ["✓ holds", "✗ does not hold"]


def test_wall_time_counts_what_was_trained_before_an_interruption(monkeypatch):
    monkeypatch.setattr(chapter.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(chapter, "cores", lambda: 2)
    now = time.time()
    assert chapter.wall_time(now - 50, trained=80) == pytest.approx(50, abs=1)
    assert chapter.wall_time(now - 5, trained=80) == 40


def test_tables_show_signs_and_gaps():
    frame = pd.DataFrame({"accuracy": [91.26, None, 0.0], "gain": [3.14, -1.0, -0.04], "rate": ["-1 ± 2 %", None, "x"]})
    html = chapter.table(frame, signed=["gain"]).to_html()
    cells = re.findall(r"<td [^>]*>([^<]*)</td>", html)
    assert cells == ["91.3", "+3.1", "−1\u00a0±\u00a02\u00a0%", "–", "−1.0", "–", "0.0", "0.0", "x"]


def test_a_claim_is_shown_in_the_colour_of_its_verdict(monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", lambda page: shown.append(page.data))
    chapter.Verdicts("02_x").judge("a", "A is above B.", "+3 (Table 1)", "-4 %", "does not hold")
    assert '<div class="claim does-not-hold">\n\n**Claim.** A is above B.' in shown[0]
    assert "*Here:* −4\u00a0%." in shown[0] and "✗ does not hold</span>" in shown[0]


def test_glued_numbers_are_typeset(monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", lambda bundle, **_: shown.append(bundle["text/plain"]))
    chapter.glue("x", -0.08)
    chapter.glue("y", "3e-16")
    assert shown == ["−0.08", "3·10⁻¹⁶"]


def test_sources_are_shown_without_docstrings(monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", lambda page: shown.append(page.data))
    chapter.show_source(algorithms.scaffold, algorithms.fedavg)
    assert "def scaffold(" in shown[0] and "def remember(" in shown[0] and "def fedavg()" in shown[0]
    assert "Control variates" not in shown[0] and "McMahan" not in shown[0]


def test_some_takes_a_list_of_the_words_also_an_empty_one():
    some = chapter.some(("skew", "text"))
    assert some.test([]) and some.test(["text"]) and some.test(("skew", "text"))
    assert not any(some.test(wrong) for wrong in (["txt"], "skew", None, [["skew"]], [1]))
    assert some.says == "a list of skew, text"


def test_recorded_runs_are_those_of_the_larger_presets(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", lambda page: shown.append(page.data))
    for preset in ("quick", "cpu", "custom"):
        claims.save_results("02_x", preset, claims=[], config={}, seeds=[0], wall_time=1.0, folder=tmp_path)
    assert list(chapter.recorded("02_x", tmp_path)) == ["cpu"] and chapter.recorded("03_x", tmp_path) == {}
    first, *others = shown[0].splitlines()
    assert first.startswith("- `cpu`: ") and others == ["- `colab`: not run", "- `paper`: not run"]
    assert shown[1].count("not run") == 3

import math
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from myst_nb.core.variables import format_plain_text

from fedlib import algorithms, data
from fedlib.book import chapter, claims
from fedlib.experiment import Row
from fedlib.simulate import Run

SPEC = {
    "preset": ("quick", "colab", "paper"),
    "rounds": chapter.integer(1),
    "lr": chapter.real(above=0),
    "seeds": chapter.many(int),
    "clip": chapter.optional(chapter.real(above=0)),
    "flag": bool,
    "folder": chapter.optional(str),
}
DEFAULTS = {"preset": "quick", "rounds": 30, "lr": 0.1, "seeds": [0, 1], "clip": None, "flag": False, "folder": None}


def check(tmp_path=None, **injected):
    """What a notebook does: set-up, parameters cell, the cell that papermill injects."""
    namespace = {"np": object(), "_i1": "", "In": []}
    chapter.begin(namespace)
    namespace.update({**DEFAULTS, "_i2": "", **injected})
    return chapter.check_parameters(namespace, chapter="02_x", params=tmp_path or "nowhere", **SPEC)


@pytest.fixture(autouse=True)
def in_no_checkout(monkeypatch):
    """Results are recorded whatever the state of the tree that the tests are run from."""
    monkeypatch.setattr(claims.card, "commit", lambda *_: {"commit": None, "clean": None})


@pytest.fixture
def presets(tmp_path):
    """A folder with presets; the paper's leaves open what is as in the quick one."""
    write(tmp_path / "02_x.quick.yaml", DEFAULTS)
    write(tmp_path / "02_x.paper.yaml", {"preset": "paper", "rounds": 1, "clip": 1})
    return tmp_path


def write(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.fixture
def shown(monkeypatch):
    """Texts that chapters show from now on."""
    texts = []
    monkeypatch.setattr(chapter, "display", lambda page: texts.append(page.data))
    return texts


def test_good_parameters_pass(presets):
    assert check(presets) == "quick"
    assert check(presets, preset="paper", rounds=1, clip=1) == "paper"


@pytest.mark.parametrize(
    "injected, message",
    [
        ({"round": 5}, "unknown parameter 'round' = 5. Did you mean 'rounds'?"),
        ({"zzz": 5}, "unknown parameter 'zzz' = 5. Known parameters: clip, flag, folder, lr, preset, rounds, seeds"),
        ({"np": 5}, "unknown parameter 'np' = 5"),
        ({"preset": "papr"}, "parameter 'preset' must be one of 'quick', 'colab', 'paper', got 'papr'"),
        ({"rounds": 0}, "parameter 'rounds' must be a whole number of at least 1, got 0"),
        ({"rounds": True}, "parameter 'rounds' must be a whole number"),
        ({"lr": float("nan")}, "parameter 'lr' must be a finite number above 0, got nan"),
        ({"lr": "1e-3"}, "parameter 'lr' must be a finite number above 0, got '1e-3'"),
        ({"seeds": []}, "parameter 'seeds' must be a list, not empty, each of a whole number, got"),
        ({"seeds": [0.5]}, "parameter 'seeds' must be a list"),
        ({"clip": -1}, "parameter 'clip' must be None or a finite number above 0, got -1"),
        # what YAML 1.1 reads as text, and how it reads a number
        ({"lr": "1e-3"}, "got '1e-3'. To YAML that is text: write 0.001"),
        ({"lr": ".5e-7"}, "got '.5e-7'. To YAML that is text: write 5.0e-08"),
        ({"rounds": "1e5"}, "got '1e5'. To YAML that is text: write 100000"),
        ({"clip": "None"}, "got 'None'. To YAML that is text: write null"),
        ({"seeds": "[0, 1]"}, "got '[0, 1]'. To YAML that is text: write [0, 1]"),
        ({"seeds": [0, "1e1"]}, "got [0, '1e1']. To YAML that is text: write [0, 10]"),
        ({"flag": "True"}, "parameter 'flag' must be a bool, got 'True'. To YAML that is text: write true"),
        ({"folder": "None"}, "parameter 'folder' must be None or a str, got 'None'. To YAML that is text: write null"),
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


def test_a_text_that_says_nothing_else_gets_no_hint():
    with pytest.raises(ValueError, match="got 'fast'$"):
        check(lr="fast")


@pytest.mark.parametrize(
    "injected, differ",
    [
        ({"rounds": 31}, "`rounds` differs from it"),
        ({"rounds": 31, "lr": 0.2}, "`lr`, `rounds` differ from it"),
        # left open by the preset's file: as in the quick preset
        ({"preset": "paper", "rounds": 1, "clip": 1, "seeds": [7]}, "`seeds` differs from it"),
    ],
)
def test_hand_picked_settings_are_called_custom_and_the_page_says_why(presets, shown, injected, differ):
    assert check(presets, seeds=(0, 1)) == "quick" and not shown
    assert check(presets, **injected) == "custom"
    assert f"`custom`: the preset is `{injected.get('preset', 'quick')}`, but {differ}" in shown[0]


def test_a_preset_without_its_file_is_not_believed(presets, shown):
    assert check(presets, preset="colab") == "custom"
    assert f"no file `02_x.colab.yaml` in `{presets}` says what the preset `colab` is" in shown[0]


def book(tmp_path):
    """A checkout with presets, and nothing packaged."""
    write(tmp_path / "clone" / "book" / "params" / "02_x.quick.yaml", DEFAULTS)
    return tmp_path / "clone" / "book"


def check_here(**injected):
    namespace = {}
    chapter.begin(namespace)
    namespace.update(DEFAULTS, **injected)
    return chapter.check_parameters(namespace, chapter="02_x", **SPEC)


@pytest.mark.parametrize("where", ["clone", "clone/book", "clone/book/params", "clone/benchmarks"])
def test_presets_and_results_are_found_from_anywhere_in_a_checkout(tmp_path, monkeypatch, where):
    home = book(tmp_path)
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    assert check_here() == "quick" and check_here(rounds=1) == "custom"
    path = claims.save_results("02_x", "cpu", claims=[], config={}, seeds=[0])
    assert path == home / "results" / "02_x.cpu.json" and path.exists()
    assert list(claims.load_results()["02_x"]) == ["cpu"]


def test_a_preset_can_be_applied_without_papermill(tmp_path, monkeypatch):
    home = book(tmp_path)
    monkeypatch.chdir(home)
    write(home / "params" / "02_x.paper.yaml", {"preset": "paper", "rounds": 1})
    assert check_here(**chapter.preset("02_x", "paper")) == "paper"
    with pytest.raises(ValueError, match=r"one of .*02_x.paper, 02_x.quick; got '02_x.papr'"):
        chapter.preset("02_x", "papr")


def alone(tmp_path, monkeypatch):
    """A notebook by itself and an installed fedlib, with copies of the book's presets and results."""
    packaged = tmp_path / "site-packages" / "fedlib" / "book"
    monkeypatch.setattr(claims, "_PACKAGED", packaged)
    monkeypatch.setattr(claims, "__file__", str(packaged / "claims.py"))
    (tmp_path / "notebook").mkdir()
    monkeypatch.chdir(tmp_path / "notebook")
    return packaged


def test_a_notebook_alone_knows_what_came_with_fedlib_and_saves_beside_itself(tmp_path, monkeypatch, shown):
    packaged = alone(tmp_path, monkeypatch)
    write(packaged / "params" / "02_x.quick.yaml", DEFAULTS)
    for preset in ("quick", "cpu"):
        claims.save_results("02_x", preset, claims=[], config={}, folder=packaged / "results")
    assert check_here() == "quick" and check_here(rounds=1) == "custom"
    path = claims.save_results("02_x", "colab", claims=[], config={})
    assert path == tmp_path / "notebook" / "results" / "02_x.colab.json"
    (path.parent / "of_something_else.json").write_text("{}", encoding="utf-8")
    shown.clear()
    assert list(chapter.recorded("02_x")) == ["cpu", "colab"]
    assert shown[0].count("not run") == 1 and "`paper`: not run" in shown[0]


def test_where_nothing_is_to_be_found_the_page_says_so(tmp_path, monkeypatch, shown):
    alone(tmp_path, monkeypatch)
    assert check_here() == "custom" and "no file `02_x.quick.yaml`" in shown[0]
    assert chapter.recorded("02_x") == {} and "which is not here" in shown[1] and "not run" not in shown[1]


TEXT = {"name": "a", "rounds": 30, "rates": [0.1], "options": {"length": 8}}
TEXT_SPEC = {
    "preset": ("quick",),
    "text": chapter.keyed(
        {"name": str, "rounds": chapter.integer(1), "rates": chapter.many(chapter.real(above=0)), "options": dict}
    ),
    "rates": chapter.keyed(dict.fromkeys("ab", chapter.many(float)), fill=False, needs=["a"]),
    "second": chapter.optional(chapter.keyed({"rounds": chapter.integer(1)}, fill=False)),
}


def check_text(folder, **injected):
    write(folder / "02_x.quick.yaml", {"preset": "quick", "text": TEXT, "rates": {"a": [1.0]}, "second": None})
    namespace = {}
    chapter.begin(namespace)
    namespace.update(preset="quick", text=TEXT, rates={"a": [1.0]}, second=None)
    namespace.update(injected)
    return chapter.check_parameters(namespace, chapter="02_x", params=folder, **TEXT_SPEC), namespace


def test_a_dict_is_merged_with_the_defaults_key_by_key(tmp_path):
    label, names = check_text(tmp_path, text={"rounds": 2})
    assert names["text"] == {**TEXT, "rounds": 2} and label == "custom"
    assert check_text(tmp_path, text={"rounds": 30})[0] == "quick"
    # options belong to a name: they are replaced as a whole
    assert check_text(tmp_path, text={"options": {}})[1]["text"] == {**TEXT, "options": {}}
    label, names = check_text(tmp_path, rates={"a": [0.5]}, second={"rounds": 3})
    assert names["rates"] == {"a": [0.5]} and names["second"] == {"rounds": 3}


@pytest.mark.parametrize(
    "injected, message",
    [
        ({"text": {"round": 2}}, "parameter 'text': unknown key 'round'. Did you mean 'rounds'?"),
        ({"text": {"zzz": 2}}, "parameter 'text': unknown key 'zzz'. Known keys: name, rounds, rates, options"),
        ({"text": {"rounds": 0}}, "parameter 'text': rounds must be a whole number of at least 1, got 0"),
        ({"text": {"rates": ["1e-3"]}}, "parameter 'text': rates must be a list, not empty, each of a finite number"),
        ({"text": {"rates": ["1e-3"]}}, "To YAML that is text: write [0.001]"),
        ({"text": 3}, "parameter 'text' must be a dict with name, rounds, rates, options, got 3"),
        ({"text": None}, "parameter 'text' must be a dict with name, rounds, rates, options, got None"),
        ({"rates": {"b": [1.0]}}, "parameter 'rates': a is missing"),
        ({"rates": {"a": [1.0], "c": [1.0]}}, "parameter 'rates': unknown key 'c'. Known keys: a, b"),
        ({"second": {"rounds": -1}}, "parameter 'second': rounds must be a whole number of at least 1, got -1"),
        ({"second": {"rouds": 1}}, "parameter 'second': unknown key 'rouds'. Did you mean 'rounds'?"),
        ({"second": "None"}, "parameter 'second' must be None or a dict with rounds, got 'None'. To YAML"),
    ],
)
def test_what_is_wrong_inside_a_dict_is_named(tmp_path, injected, message):
    with pytest.raises(ValueError) as error:
        check_text(tmp_path, **injected)
    assert message in str(error.value)


def test_without_a_file_to_fill_it_from_a_missing_key_is_named(tmp_path):
    namespace = {}
    chapter.begin(namespace)
    namespace.update(preset="quick", text={"rounds": 2}, rates={"a": [1.0]}, second=None)
    with pytest.raises(ValueError, match="parameter 'text': name is missing"):
        chapter.check_parameters(namespace, chapter="02_x", params=tmp_path, **TEXT_SPEC)


def test_paths_that_papermill_injects_are_no_parameters(presets):
    assert check(presets, PAPERMILL_INPUT_PATH="a.ipynb", PAPERMILL_OUTPUT_PATH="b.ipynb") == "quick"


def test_whatever_a_later_section_refuses_is_refused_as_its_parameter():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="parameter 'text': unknown data set 'shakespear'"):
        with chapter.parameter("text"):
            torch.rand(3)
            data.load("shakespear")
    assert torch.equal(torch.get_rng_state(), before)


CHECKPOINTS = {**SPEC, "sections": list, "checkpoints": chapter.optional(str), "save": bool}


def name_of(words=("tune", "FedAvg + BN"), more=None, chapter_name="02_x", besides=(), **injected):
    namespace = {}
    chapter.begin(namespace)
    namespace.update(DEFAULTS, sections=["a"], checkpoints="kept", save=False)
    namespace.update(injected)
    chapter.check_parameters(namespace, chapter=chapter_name, **CHECKPOINTS)
    return chapter.checkpoint_names(namespace, besides)(*words, **more or {})


def test_runs_that_differ_in_what_decides_a_result_have_checkpoints_of_their_own():
    usual = name_of()
    assert usual.parent.name == "kept" and re.fullmatch(r"02-quick-tune-FedAvg\+BN-[0-9a-f]{10}\.pt", usual.name)
    others = [
        name_of(preset="paper"),
        name_of(preset="colab"),
        name_of(lr=0.2),
        name_of(preset="paper", lr=0.2),
        name_of(chapter_name="03_x"),
        name_of(words=("tune", "FedAvg+BN")),  # written alike, yet another
        name_of(more={"lr": [0.1]}),
        name_of(more={"lr": [0.2]}),
    ]
    assert len({usual, *others}) == 9
    same = [name_of(sections=[]), name_of(save=True), name_of(seeds=(0, 1)), name_of(besides=["lr"], lr=0.2)]
    assert set(same[:3]) == {usual} and same[3] == name_of(besides=["lr"])
    assert name_of(checkpoints="elsewhere").name == usual.name
    assert name_of(checkpoints=None) is None


def test_checkpoints_can_lie_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert name_of(checkpoints="~/kept").parent == tmp_path / "kept"


def test_checkpoints_have_names_once_parameters_are_checked():
    with pytest.raises(RuntimeError, match="call check_parameters"):
        chapter.checkpoint_names({})


def test_one_of_a_thing_is_not_several():
    assert [chapter.counted(n, "seed") for n in (0, 1, 2, 1000)] == ["0 seeds", "1 seed", "2 seeds", "1,000 seeds"]


def test_a_section_left_out_says_whose_results_the_text_tells(shown):
    chapter.not_run("quick")
    chapter.not_run("paper")
    assert "about the preset" not in shown[0] and shown[1].endswith("is about the preset `quick`.*")


def test_where_results_go_does_not_make_a_preset_custom(tmp_path):
    write(tmp_path / "02_x.quick.yaml", {**DEFAULTS, "save": False})
    spec = {**SPEC, "save": bool}
    namespace = {}
    chapter.begin(namespace)
    namespace.update(DEFAULTS, save=True)
    assert chapter.check_parameters(namespace, chapter="02_x", params=tmp_path, **spec) == "quick"


def judge(verdicts, id, *told):
    """Add a claim whose verdict is known."""
    verdicts._add(claims.Claim(id, verdicts.chapter, *told))


def test_verdicts_are_expected_in_either_direction():
    verdicts = chapter.Verdicts("02_x")
    judge(verdicts, "a", "A is above B.", "+3 (Table 1)", "+4 points", "holds")
    judge(verdicts, "b", "B is above C.", "+1 (Table 1)", "-1 points", "does not hold")
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
    frame["blocks"] = [6, 1, 1000]
    html = chapter.table(frame, signed=["gain"]).to_html()
    cells = re.findall(r"<td [^>]*>([^<]*)</td>", html)
    assert cells == ["91.3", "+3.1", "−1\u00a0±\u00a02\u00a0%", "6", "–", "−1.0", "–", "1", "0.0", "0.0", "x", "1,000"]


def test_a_claim_is_shown_in_the_colour_of_its_verdict(monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", lambda page: shown.append(page.data))
    judge(chapter.Verdicts("02_x"), "a", "A is above B.", "+3 (Table 1)", "-4 %", "does not hold")
    assert '<div class="claim does-not-hold">\n\n**Claim.** A is above B.' in shown[0]
    assert "*Here:* −4\u00a0%." in shown[0] and "✗ does not hold</span>" in shown[0]


def test_glued_numbers_are_typeset_and_the_page_shows_them_as_they_are(monkeypatch):
    """myst-nb evaluates what it pastes: a bare "+56" would come out as 56, "1,797" as a tuple."""
    shown = []
    monkeypatch.setattr(
        chapter, "display", lambda bundle, **_: shown.append(format_plain_text(bundle["text/plain"], "s"))
    )
    for text in (-0.08, "3e-16", "+56", "1,797", 'the clients\' own "words"', 12):
        chapter.glue("x", text)
    assert shown == ["−0.08", "3·10⁻¹⁶", "+56", "1,797", 'the clients\' own "words"', "12"]


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


def row(name, seeds, *accuracies):
    """A row whose runs were evaluated after rounds 5, 10, ..."""
    runs = [
        Run(
            {"seed": seed, "evaluate_every": 5},
            pd.DataFrame({"round": [5, 10], "accuracy": [of / 200, of / 100], "validation": [0.0, 0.0]}),
            pd.DataFrame(), None, 1.0, None,
        )
        for seed, of in zip(seeds, accuracies, strict=True)
    ]  # fmt: skip
    return Row(name, {}, 0.1, {}, runs)


def test_rows_are_compared_by_the_seeds_that_both_have():
    one, other = row("LN", [7, 8, 9], 70, 80, 90), row("none", [9, 7], 50, 40)
    np.testing.assert_allclose(chapter.ahead(one, other, 10), [30, 40])
    np.testing.assert_allclose(chapter.ahead(one, other, 5), [15, 20])
    np.testing.assert_allclose(chapter.ahead(one, other), [22.5, 30])  # levels: the mean of the last evaluations
    assert chapter.ahead(None, other) is None and chapter.ahead(one, None, 5) is None
    for run, mean in zip([*one.runs, *other.runs], [0.1, 0.2, 0.3, 0.1, 0.1], strict=True):
        run.history["client_accuracy"] = mean  # over clients, not pooled
    np.testing.assert_allclose(chapter.ahead(one, other, column="client_accuracy"), [0, 20])
    with pytest.raises(ValueError, match=re.escape("'LN' and 'none' have no seed in common: [1] and [2]")):
        chapter.ahead(row("LN", [1], 50), row("none", [2], 50))


def test_differences_are_spoken_with_their_interval():
    assert chapter.span([1.0, 2.0, 3.0]) == "+2.0 points [-0.5, 4.5]"
    assert chapter.span([-1.5], "") == "-1.5" and chapter.span(None) == "not run"
    assert (
        chapter.span([1.0, None, 2.0])
        == chapter.span(np.array([1, np.nan, 2]))
        == ("not known, since 1 of 3 runs diverged")
    )


def test_a_share_of_a_gain_that_is_too_small_says_so():
    part = {
        "id": "kept", "what": "share of a gain", "sense": "at least", "bar": 0.9, "reason": "most of it", "learned": 15,
        "weaker": None, "exact": False, "known": False, "rounding": 0,
        "verdict": "undecided", "values": [[4, 5], [9, 8]],
    }  # fmt: skip
    folded = chapter._folded([{**part, "interval": [-math.inf, math.inf]}])[0]
    assert "Interval: none, since the whole gain is not known to be above 15 points, 2 seeds" in folded
    assert "A share is judged only of a gain whose whole interval lies above 15 points." in folded
    assert "Interval: 0.400 to 0.600, 2 seeds" in chapter._folded([{**part, "interval": [0.4, 0.6]}])[0]


def test_curves_stop_at_a_round_and_say_where_nothing_was_run(monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", lambda thing: shown.append(thing.data))
    ax = chapter.curves({"LN": row("LN", [7], 70), "none": None}, "quick", 5)
    assert [list(line.get_xdata()) for line in ax.lines] == [[5]] and not shown
    assert chapter.curves({"none": None}, "cpu") is None and "does not run this section" in shown[0]
    plt.close("all")


def test_a_table_of_rows_says_rate_accuracy_and_seeds():
    lines = chapter.lines({"LN": row("LN", [7, 8], 70, 80)}, 10)
    assert lines == {"LN": {"rate": "0.1", "accuracy": "75.0 ± 7.1", "seeds": 2}}
    assert chapter.lines({"LN": row("LN", [7], 70)}) == {"LN": {"rate": "0.1", "accuracy": "52.5", "seeds": 1}}
    at_the_end = Row("LN", {}, 0.3, {0.1: 50.0, 0.3: 60.0}, row("LN", [7], 70).runs)
    assert chapter.lines({"LN": at_the_end}, 5)["LN"] == {
        "rate": "0.3 (end of the grid)", "accuracy": "35.0", "seeds": 1,
    }  # fmt: skip


def test_a_section_shows_its_rows_or_those_that_larger_presets_recorded(monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", shown.append)
    here, there = chapter.lines({"LN": row("LN", [7], 70)}), {"cpu": {"tables": {"shift": {"LN": {"accuracy": "41"}}}}}
    there["custom"] = there["quick"] = {"tables": {"labels": {"LN": {"accuracy": "99"}}}}  # nobody's record
    chapter.section("shift", here, there, "Mixed.")
    chapter.section("shift", {}, there, "Mixed.")
    chapter.section("labels", {}, there, "Mixed.")
    first, second = (one.to_html() for one in shown[:2])
    assert "52.5" in first and ">Mixed.<" in first and "41" in second and ">Mixed. Preset cpu.<" in second
    assert shown[2].data == "*Not run here, and no larger preset has recorded it.*" and len(shown) == 3


def test_a_claim_says_what_larger_presets_found(monkeypatch):
    shown, there = [], {"id": "a", "measured": "-3.0 points", "verdict": "does not hold"}
    monkeypatch.setattr(chapter, "display", lambda page: shown.append(page.data))
    results = {size: {"claims": [{**there, "measured": size}]} for size in ("quick", "cpu", "colab")}
    results["paper"] = {"claims": [{**there, "verdict": "not run"}]}
    monkeypatch.setattr(chapter, "load_results", lambda: {"02_x": results})
    told = "*Preset `{}`:* {}. <span"
    quick = chapter.Verdicts("02_x", "quick")
    judge(quick, "a", "A is above B.", "+3", "not run", "not run")
    (line,) = quick.table().data[["verdict", "cpu", "colab", "paper"]].to_numpy().tolist()
    assert line == ["– not run", "✗ does not hold", "✗ does not hold", "– not run"]
    assert all(told.format(size, size) in shown[0] for size in ("cpu", "colab")) and shown[0].count("*Preset") == 2
    assert "✗ does not hold</span>" in shown[0] and '<div class="claim not-run">' in shown[0]
    judge(chapter.Verdicts("02_x", "cpu"), "a", "A is above B.", "+3", "not run", "not run")
    judge(chapter.Verdicts("02_x", "quick"), "a", "A is above B.", "+3", "+2", "holds")
    judge(chapter.Verdicts("02_x", "quick"), "b", "A is above B.", "+3", "not run", "not run")
    assert [page.count("*Preset") for page in shown[1:]] == [1, 2, 0]
    for claim in (one["claims"][0] for one in results.values()):
        claim["parts"] = [{"exact": True}]
    judge(chapter.Verdicts("02_x", "quick"), "a", "A is above B.", "+3", "1e-16", "holds")
    judge(chapter.Verdicts("02_x", "quick"), "a", "A is above B.", "+3", "not run", "not run")
    assert [page.count("*Preset") for page in shown[4:]] == [0, 2]


def test_rows_that_were_recorded_are_found_by_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, "book_folders", lambda name: [tmp_path])
    assert chapter.rows("02_x", "cpu") is None
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "02_x.cpu.json").write_text('{"rows": {}}')
    monkeypatch.setattr(chapter, "Record", lambda *words: words)
    assert chapter.rows("02_x", "cpu") == ("02_x", "cpu") and chapter.rows("02_x", "quick") is None


def test_what_larger_presets_gave_is_shown_whole(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(chapter, "display", shown.append)
    claim = {"id": "a", "statement": "LN helps.", "measured": "+2 points", "verdict": "holds"}
    result = {
        "config": {"data": "cifar10"},
        "curves": {
            "methods: LN": [{"round": [5, 10], "accuracy": [0.2, 0.4]}],
            "photographs: LN": [{"round": [5, 10], "client_accuracy": [0.3, 0.5]}],
        },
        "tables": {"methods": {"LN": {"rate": "0.1", "accuracy": "40 %"}}},
        "claims": [claim, {**claim, "id": "b", "verdict": "not run"}],
    }
    chapter.draw_recorded({"cpu": result})
    assert not shown and plt.gca().get_title() == "cifar10, preset cpu"
    chapter.draw_recorded({"cpu": result}, "photographs", "client_accuracy")
    assert plt.gca().get_title() == "photographs, preset cpu"
    np.testing.assert_allclose(plt.gca().lines[0].get_ydata(), [30, 50])
    before = len(plt.get_fignums())
    chapter.draw_recorded({"cpu": result}, "drawings")
    assert len(plt.get_fignums()) == before
    chapter.list_recorded({"cpu": result})
    assert "0.1" in shown[0].to_html() and shown[1].data == "- *LN helps.* +2 points: **holds**"
    plt.close("all")

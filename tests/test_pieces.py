"""The live pieces of chapters 1, 4 and 6, and the questions: arithmetic as in the library, and usable by everybody."""

import json
from urllib.parse import parse_qs, urlparse

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from browsing import SITE, in_browser

import fedlib as fl
from fedlib.book import live

STATIC = fl.claims.book_folder() / "_static"
PAGES = {"bowls": "book/04_fednar", "points": "book/06_ln_nonlinearity", "drift": "book/01_federated_learning"}
there = pytest.mark.skipif(
    not all((SITE / f"{page}.html").exists() for page in PAGES.values()), reason="the site is not built (see README.md)"
)
HESSIANS = [[[1.0, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 1.0]]]
MINIMA = [[4.0, 1.0], [-1.0, 3.0]]
BOWLS = {
    "H": HESSIANS, "minima": MINIMA, "start": [4.6, 4.2], "rounds": 40, "sides": ["base", "NAR"],
    "settings": {"decay": 0.5, "ball": 0.5, "steps": 3, "lr": 0.1}, "xlim": [-2, 5.5], "ylim": [-1.5, 4.7],
}  # fmt: skip


# --- the arithmetic, without a page ---


@pytest.fixture(scope="module")
def bare(browser):
    page = browser.new_page()
    for name in ("federation.js", "drawing.js", "controls.js", "folding.js", "pieces.js", "points.js", "bowls.js"):
        page.add_script_tag(path=STATIC / name)
    return page


@in_browser
@pytest.mark.parametrize("side, method", [("base", fl.algorithms.fedavg()), ("NAR", None)])
def test_two_bowls_walk_as_the_library_does(bare, side, method):
    method = method or fl.algorithms.fednar(fl.algorithms.fedavg())
    given = {"H": HESSIANS, "minima": MINIMA, "start": [4.6, 4.2], "steps": 3, "lr": 0.1, "decay": 0.5, "ball": 0.5}
    theirs = bare.evaluate("(given) => Quadratics.federate(given, 40).server", given | {"side": side})
    H, a = (torch.tensor(values, dtype=torch.float64) for values in (HESSIANS, MINIMA))
    path = [torch.tensor([4.6, 4.2], dtype=torch.float64)]
    for _ in range(40):
        W = path[-1].repeat(2, 1)
        for _ in range(3):
            G = torch.einsum("kij,kj->ki", H, W - a)
            W = W - 0.1 * method.direction(G, W, fl.cohort.Local.alone(W, weight_decay=0.5, clip=0.5))
        path.append(W.mean(0))
    assert np.abs(np.array(theirs) - torch.stack(path).numpy()).max() < 1e-12


@in_browser
def test_minima_and_the_place_of_rest(bare):
    H, a = np.array(HESSIANS), np.array(MINIMA)
    one = bare.evaluate("([H, a]) => Quadratics.minimum(H[0], a[0], 0.3)", [HESSIANS, MINIMA])
    assert np.allclose(one, np.linalg.solve(H[0] + 0.3 * np.eye(2), H[0] @ a[0]), atol=1e-12)
    both = bare.evaluate("([H, a]) => Quadratics.shared(H, a, 0.3)", [HESSIANS, MINIMA])
    assert np.allclose(both, np.linalg.solve(H.mean(0) + 0.3 * np.eye(2), np.einsum("kij,kj->i", H, a) / 2), atol=1e-12)
    given = {"H": HESSIANS, "minima": MINIMA, "start": [0, 0], "steps": 7, "lr": 0.1}
    rest, after = bare.evaluate("(g) => [Quadratics.rest(g), Quadratics.federate(g, 3000).server.at(-1)]", given)
    assert np.allclose(rest, after, atol=1e-9)


@in_browser
def test_level_lines_lie_on_one_level(bare):
    for H in HESSIANS:
        long, short, degrees = bare.evaluate("(H) => Quadratics.ellipse(H, 2)", H)
        turn = np.deg2rad(degrees)
        along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        for point in (long * along, short * across):
            assert np.isclose(point @ np.array(H) @ point, 2)
        assert long >= short


@in_browser
@pytest.mark.parametrize("seed", range(6))
def test_lssr_is_the_librarys(bare, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 2, generator=g, dtype=torch.float64)
    y = torch.randint(3, (9,), generator=g)
    if seed == 5:
        x[:, 1] = 2 * x[:, 0] - 1  # on a line
    theirs = bare.evaluate("([x, y]) => Folding.lssr(x, y)", [x.tolist(), y.tolist()])
    assert abs(theirs - fl.measure.lssr(x, y)) < 1e-9


@in_browser
@pytest.mark.parametrize("seed, m, classes", [(0, 4, 2), (1, 8, 2), (2, 12, 2), (3, 12, 3), (4, 9, 3)])
def test_a_built_classifier_is_a_network_of_linear_layers_and_ln(bare, seed, m, classes):
    """Its numbers, put into torch's linear layers and fedlib's LN of three features, classify every point."""
    g = torch.Generator().manual_seed(seed)
    x = (3 * torch.rand(m, 2, generator=g, dtype=torch.float64) - 1.5).round(decimals=2)
    y = torch.arange(m) % classes
    built = bare.evaluate("([x, y]) => Folding.build(x, y, Federation.generator(1))", [x.tolist(), y.tolist()])
    assert len(built["layers"]) <= m - classes
    angle = np.deg2rad(built["degrees"])
    t = x @ torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float64)
    ln, plane = fl.norms.GroupedLayerNorm(3, 1, affine=False, eps=0.0), fl.construct.PLANE
    for layer in built["layers"]:
        t = 2 * (t - t.min()) / (t.max() - t.min()) - 1
        lifted = torch.stack([layer["stretch"] * t + layer["shift"], torch.ones_like(t)], 1) @ plane.T  # (m, 3)
        t = (
            ln(lifted)
            @ plane
            @ torch.tensor([np.cos(layer["phi"]), np.sin(layer["phi"])], dtype=torch.float64)
            / 3**0.5
        )
        assert (t - torch.tensor(layer["line"], dtype=torch.float64)).abs().max() < 1e-9
        i, j = layer["merged"]
        assert y[i] == y[j] and (t[i] - t[j]).abs() < 1e-9
    runs = int((y[t.argsort()].diff() != 0).sum()) + 1
    assert runs == classes


@in_browser
def test_two_classes_in_one_place_cannot_be_told_apart(bare):
    assert bare.evaluate("() => Folding.build([[0, 0], [0, 0], [1, 1]], [0, 1, 0], Federation.generator(1))") is None


@in_browser
@pytest.mark.parametrize("name", ["clients", "points", "bowls"])
def test_a_cell_is_enough(browser, tmp_path, name):
    """Without the site, from disk, and run twice: as in a notebook."""
    shown = fl.live(name, alt="a piece", **(BOWLS if name == "bowls" else {}))._repr_html_()
    asked = fl.ask("How many?", [1.0, 2.0], low=0, high=3)._repr_html_()
    file = tmp_path / "cell.html"
    file.write_text(f"<!doctype html><meta charset='utf-8'>{asked}{shown}{shown}", encoding="utf-8")
    page, errors = browser.new_page(viewport={"width": 900, "height": 3000}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_function("[...document.querySelectorAll('.live-said')].filter(one => one.textContent).length === 2")
    assert page.locator(".ask input").count() == 1 and not errors
    page.close()


@in_browser
def test_a_worker_gives_what_the_page_alone_gives(browser):
    """Both ways to the engine, the same numbers; and replies keep the order of their messages."""
    page = browser.new_page()
    for name in ("federation.js", "host.js", "drawing.js", "controls.js", "choices.js"):
        page.add_script_tag(path=STATIC / name)
    page.add_script_tag(content=live.digits())
    run = """async (workers) => {
      if (!workers) window.Worker = undefined;
      const train = Choices.unpacked(DIGITS.train), test = Choices.unpacked(DIGITS.test), ask = connected();
      const make = {what: "make", net: {sizes: [64, 24, 10], norm: "batch"}, ...train, test, method: "SCAFFOLD",
        lr: 0.1, parts: Choices.of(train.y), steps: 3, cohort: 4, seed: 5, batch: 8, settings: {}};
      const image = train.x.slice(0, 64), others = [{what: "round"}, {what: "read", image}, {what: "step"}];
      return JSON.stringify(await Promise.all([make, ...others, {what: "merge"}].map(ask)));
    }"""
    with_worker, without = page.evaluate(run, True), page.evaluate(run, False)
    assert with_worker == without and json.loads(with_worker)[2]["clients"]


# --- what a cell shows ---


def test_a_piece_brings_its_scripts_and_a_still():
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    shown = fl.live("bowls", alt='two "bowls"', still=figure, **BOWLS)._repr_html_()
    assert 'alt="two &quot;bowls&quot;"' in shown and "Pieces.bowls" in shown and ".live-row {" in shown
    assert not plt.fignum_exists(figure.number)
    before, after = shown.split("<!--live-->")
    assert "<script" not in before and after.endswith("<!--/live-->")
    assert live.used(before) == list(live.SCRIPTS["bowls"])


def test_every_script_of_a_piece_exists():
    for name in {one for scripts in live.SCRIPTS.values() for one in scripts} - {"digits.js"}:
        assert (STATIC / name).is_file(), name


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("trains",), "'trains' does not exist"),
        (("ask",), "'ask' does not exist"),
        (("points", " "), "alt must say"),
    ],
)  # fmt: skip
def test_pieces_that_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        fl.live(*arguments, **({} if len(arguments) > 1 else {"alt": "something"}))


def test_settings_that_a_piece_does_not_take():
    with pytest.raises(ValueError, match="takes .*'norm'.* got .'nrom'"):
        fl.live("clients", alt="ten clients", nrom="layer")
    with pytest.raises(ValueError, match="needs .*'xlim'"):
        fl.live("bowls", alt="two bowls", **{name: value for name, value in BOWLS.items() if name != "xlim"})


@pytest.mark.parametrize(
    "given, said",
    [
        ({"norm": "bacth"}, "norm must be one of none, layer, .*got 'bacth'.*mean 'batch'"),
        ({"lr": 0.1}, "lr must be one of 0.003, .*got 0.1"),
        ({"steps": 21}, "steps must be a whole number from 1 to 20, got 21"),
        ({"cohort": True}, "cohort must be a whole number from 1 to 10, got True"),
    ],
)
def test_values_that_the_ten_clients_do_not_know(given, said):
    with pytest.raises(ValueError, match=said):
        fl.live("clients", alt="ten clients", **given)


@in_browser
def test_the_ten_clients_know_the_values_that_python_lets_through(browser):
    page = browser.new_page()
    for name in ("federation.js", "drawing.js", "controls.js", "choices.js"):
        page.add_script_tag(path=STATIC / name)
    specs, splits = page.evaluate("() => [Choices.PARAMETERS, Object.keys(Choices.SPLITS)]")
    theirs = {name: spec.get("among") or [*range(spec["low"], spec["high"] + 1)] for name, spec in specs.items()}
    assert theirs | {"split": splits} == {name: [*values] for name, values in live.TAKES["clients"].items()}


def test_without_its_scripts_a_piece_says_so(monkeypatch):
    monkeypatch.setattr(live, "static", lambda: None)
    assert "are not here" in fl.live("points", alt="points")._repr_html_()


def test_a_question_has_its_answer_and_the_papers():
    shown = fl.ask("How many?", [10.0, 12.0, 14.0], low=0, high=20, paper=(30, "Table 1")).body
    assert "We measured 12.0 points, 95 % interval over 3 seeds [7.0, 17.0]." in shown
    assert "The paper: 30 points (Table 1)." in shown and "&quot;high&quot;: 30" in shown
    assert "We measured 3.0 per cent." in fl.ask("How many?", 3, low=0, high=5, unit="per cent").body


@pytest.mark.parametrize("answer", [None, float("nan"), [1.0, float("nan")], float("inf")])
def test_a_question_that_nobody_measured(answer):
    assert "was not run" in fl.ask("How many?", answer, low=0, high=5).body


@pytest.mark.parametrize(
    "options, said",
    [({"question": "Guess."}, "question mark"), ({"low": 5}, "low and high"), ({"low": "0"}, "low and high")],
)
def test_questions_that_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        fl.ask(**({"question": "How many?", "answer": 1, "low": 0, "high": 5} | options))


# --- on the built pages ---


def opened(tab, piece, query="", **options):
    """The page, with its piece begun."""
    one = tab(**options)
    one.page.goto(f"{one.server}/{PAGES[piece]}.html{query}", wait_until="load")
    one.page.locator(".live").scroll_into_view_if_needed()
    if options.get("scripts", True):
        one.page.wait_for_function("document.querySelector('.live .live-said')?.textContent")
    return one


def state(page):
    return {name: value for name, (value,) in parse_qs(urlparse(page.url).query).items()}


def said(page):
    return page.locator(".live .live-said").inner_text()


def drag(page, name, x, y):
    """A mark to this place of its picture, in shares of its width and height."""
    mark, box = page.locator(f".live [data-drag='{name}']"), page.locator(".live svg").first.bounding_box()
    at = mark.bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
    page.mouse.up()


def touch(page, name, x, y):
    """The same by a finger."""
    mark, box = page.locator(f".live [data-drag='{name}']"), page.locator(".live svg").first.bounding_box()
    at, send = mark.bounding_box(), page.context.new_cdp_session(page).send
    start = [at["x"] + at["width"] / 2, at["y"] + at["height"] / 2]
    end = [box["x"] + x * box["width"], box["y"] + y * box["height"]]
    for share in np.linspace(0, 1, 6):
        point = {"x": start[0] + share * (end[0] - start[0]), "y": start[1] + share * (end[1] - start[1])}
        send("Input.dispatchTouchEvent", {"type": "touchMove" if share else "touchStart", "touchPoints": [point]})
    send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


LABELS = {
    "a1": ("minimum of client 1, first weight", "minimum of client 1, second weight"),
    "0": ("x of point 1", "y of point 1"),
}


@pytest.mark.site
@in_browser
@there
@pytest.mark.parametrize("piece, name", [("bowls", "a1"), ("drift", "a1"), ("points", "0")])
def test_mouse_finger_numbers_and_address_give_the_same_state(tab, piece, name):
    dragged = opened(tab, piece).page
    first = state(dragged)
    drag(dragged, name, 0.3, 0.3)
    there_now = state(dragged)
    key = "points" if piece == "points" else name
    assert there_now[key] != first[key] and {k: v for k, v in there_now.items() if k != key} == {
        k: v for k, v in first.items() if k != key
    }
    touched = opened(tab, piece, touch=True).page
    touch(touched, name, 0.3, 0.3)
    assert state(touched) == there_now
    typed = opened(tab, piece).page
    typed.locator(".live summary").click()
    for label, value in zip(LABELS[name], there_now[key].split("_")[0].split(","), strict=False):
        typed.get_by_label(label, exact=True).fill(value)
        typed.keyboard.press("Tab")
    assert state(typed) == there_now
    again = opened(tab, piece, "?" + urlparse(dragged.url).query).page
    assert state(again) == there_now and said(again) == said(dragged) == said(typed) == said(touched)


@pytest.mark.site
@in_browser
@there
def test_the_bowls_by_keyboard(tab):
    one = opened(tab, "bowls")
    page = one.page
    before = said(page)
    page.locator(".live").get_by_label("clip radius A").focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert float(state(page)["ball"]) > 2 and said(page) != before
    page.get_by_label("local steps").fill("99")
    page.keyboard.press("Tab")
    assert said(page) == "local steps must be a whole number from 1 to 50."
    assert not one.errors and not one.foreign


@pytest.mark.site
@in_browser
@there
def test_xor_and_then_more_points(tab):
    one = opened(tab, "points")
    page = one.page
    assert "1.000" in said(page) and "One LN layer: on the line after it, each class has an interval" in said(page)
    page.get_by_label("read-out φ (degrees)").focus()
    for _ in range(25):
        page.keyboard.press("ArrowLeft")
    assert "stretches" in said(page)
    page.get_by_role("button", name="eight on a ring").click()
    page.get_by_role("button", name="built").click()
    page.get_by_role("button", name="next", exact=True).click()
    layers = int(said(page).split("LN layer ")[1].split(" of ")[1].split(":")[0])
    for _ in range(layers):
        page.get_by_role("button", name="next", exact=True).click()
    assert f"LN layer {layers} of {layers}: on the line after it, each class" in said(page)
    page.get_by_role("button", name="+ green triangle").click()
    assert "9 points" in said(page)
    page.locator(".live summary").click()
    page.get_by_label("remove point 9").click()
    assert "8 points" in said(page)
    assert not one.errors and not one.foreign


@pytest.mark.site
@in_browser
@there
@pytest.mark.parametrize(
    "piece, query, wrong",
    [
        ("points", "?points=1,1,0_7,1,1&mode=magic&fold=x", ["fold=x", "mode=magic", "points=1,1,0_7,1,1"]),
        ("points", "?points=1,,0_0,1,1", ["points=1,,0_0,1,1"]),
        ("bowls", "?decay=-1&a1=1&steps=2.5&start=,", ["decay=-1", "steps=2.5", "a1=1", "start=,"]),
    ],
)
def test_an_address_without_sense_is_told_and_ignored(tab, piece, query, wrong):
    page, usual = opened(tab, piece, query).page, opened(tab, piece).page
    assert said(page).startswith("Not understood in the address, and ignored: ")
    assert sorted(said(page).rstrip(".").split("ignored: ")[1].split(", ")) == sorted(wrong)
    assert state(page) == state(usual)


@pytest.mark.site
@in_browser
@there
def test_a_rate_at_which_a_bowl_overflows(tab):
    page = opened(tab, "drift").page
    page.get_by_label("local steps").fill("50")
    page.get_by_label("learning rate").focus()
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    assert "star" in said(page) or "smaller learning rate" in said(page)


@pytest.mark.site
@in_browser
@there
@pytest.mark.parametrize("piece", PAGES)
def test_without_scripts_there_is_a_still_with_words(tab, piece):
    page = opened(tab, piece, scripts=False).page
    image = page.locator(".live img")
    assert image.count() == 1 and len(image.get_attribute("alt")) > 40
    assert all(
        page.locator(".ask details").nth(i).get_attribute("open") is not None
        for i in range(page.locator(".ask details").count())
    )


@pytest.mark.site
@in_browser
@there
@pytest.mark.parametrize("piece", PAGES)
@pytest.mark.parametrize("dark, width", [(False, 1280), (True, 390)])
def test_nothing_bars_the_way(tab, piece, dark, width):
    from axe_playwright_python.sync_playwright import Axe

    page = opened(tab, piece, dark=dark, width=width).page
    page.locator(".live summary").click()
    for box in (".live", ".ask"):
        if page.locator(box).count():
            found = Axe().run(page, context=box)
            assert not found.response["violations"], found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.site
@in_browser
@there
def test_a_question_by_keyboard(tab):
    one = tab()
    page = one.page
    page.goto(f"{one.server}/book/06_ln_nonlinearity.html", wait_until="load")
    answer = page.locator(".ask details")
    assert answer.get_attribute("open") is None
    page.locator(".ask input").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "We measured" in answer.inner_text() and "Your guess 0," in page.locator(".ask svg").get_attribute(
        "aria-label"
    )
    assert not one.errors

"""The page whose federation trains in the browser, as built: by mouse, by keyboard, by address, without scripts."""

import itertools
import json
import re
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from browsing import SITE, in_browser

import fedlib as fl
from fedlib.book.live import SCRIPTS, digits

PAGE = "book/live"
SAID = ".live-said"
there = pytest.mark.skipif(not (SITE / f"{PAGE}.html").exists(), reason="the site is not built (see README.md)")
pytestmark = pytest.mark.site


def opened(tab, query="", **options):
    """The page with a state in its address, once it has begun."""
    one = tab(**options)
    one.page.goto(f"{one.server}/{PAGE}.html{query}", wait_until="load")
    if options.get("scripts", True):
        one.page.wait_for_function(f"document.querySelector('{SAID}')?.textContent")
    return one


def state(page):
    return {name: value for name, (value,) in parse_qs(urlparse(page.url).query).items()}


def press(page, words):
    page.get_by_role("button", name=words, exact=True).click()


def told(page, pattern, timeout=20000):
    """What the status line says, once it says this."""
    page.wait_for_function(
        f"(p) => new RegExp(p).test(document.querySelector('{SAID}').textContent)", arg=pattern, timeout=timeout
    )
    return page.locator(SAID).inner_text()


def test_the_pages_digits_are_the_librarys():
    halves = json.loads(digits().removeprefix("var DIGITS = ").removesuffix(";\n"))
    data = fl.data.load("digits")
    for half, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        shades = np.array([ord(letter) - 97 for letter in halves[half]["x"]]) / 16
        assert halves[half]["y"] == "".join(map(str, y.tolist()))
        assert np.abs(shades - x.flatten().numpy() / 255).max() <= 0.5 / 255


def test_every_script_is_short_enough_to_read():
    folder = fl.claims.book_folder() / "_static"
    for name in {one for scripts in SCRIPTS.values() for one in scripts} - {"digits.js"}:
        lines = len((folder / name).read_text(encoding="utf-8").splitlines())
        assert lines <= (400 if name == "federation.js" else 250), name


@in_browser
@there
def test_a_round_by_keyboard_alone(tab):
    one = opened(tab)
    page = one.page
    page.locator("select").first.focus()
    for _ in range(2):  # norm: none, layer, feature
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter") if state(page)["norm"] == "none" else None
    told(page, "Round 0")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Round":
            break
    page.keyboard.press("Enter")
    assert "right on" in told(page, "Round 1:") and not one.errors and not one.foreign


@in_browser
@there
def test_steps_and_a_merge(tab):
    page = opened(tab).page
    press(page, "Step")
    assert "1 local steps taken" in told(page, "not merged")
    press(page, "Step")
    told(page, "2 local steps")
    press(page, "Merge now")
    told(page, "Round 1:")
    press(page, "Play")
    told(page, r"Round [1-9]\d*0:")
    press(page, "Pause")
    press(page, "Start again")
    told(page, "Round 0:")


@in_browser
@there
def test_dragging_and_numbers_give_the_same_state_and_the_address_keeps_it(tab):
    dragged, typed = opened(tab).page, opened(tab).page
    dot = dragged.locator("[data-drag='0,0']")
    at, to = dot.bounding_box(), dragged.locator("[data-drag='4,4']").bounding_box()
    dragged.mouse.move(at["x"] + 5, at["y"] + 5)
    dragged.mouse.down()
    dragged.mouse.move(at["x"] + 5, to["y"] + 5, steps=4)
    dragged.mouse.up()
    told(dragged, "sitting out: client 1")
    typed.locator("summary", has_text="as numbers").click()
    number = typed.get_by_label("images of class 0 that client 1 holds", exact=True).input_value()
    for client, value in ((1, "0"), (5, number)):
        cell = typed.get_by_label(f"images of class 0 that client {client} holds", exact=True)
        cell.fill(value)
        cell.press("Tab")
    told(typed, "sitting out: client 1")
    assert state(dragged) == state(typed) and state(typed)["split"] == "own"
    again = opened(tab, "?" + urlparse(typed.url).query).page
    assert state(again) == state(typed)
    for page in (dragged, again):
        press(page, "Round")
    assert told(dragged, "Round 1:") == told(again, "Round 1:")


@in_browser
@there
def test_a_finger_drags_as_a_mouse_does(tab):
    page = opened(tab, touch=True).page
    dot, to = page.locator("[data-drag='0,0']").bounding_box(), page.locator("[data-drag='4,4']").bounding_box()
    send = page.context.new_cdp_session(page).send
    for share in (0, 0.5, 1):
        point = {"x": dot["x"] + 5, "y": dot["y"] + 5 + share * (to["y"] - dot["y"])}
        send("Input.dispatchTouchEvent", {"type": "touchMove" if share else "touchStart", "touchPoints": [point]})
    send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    told(page, "sitting out: client 1")
    assert state(page)["split"] == "own"


@in_browser
@there
def test_the_name_of_a_setting_tries_all_its_values(tab):
    page = opened(tab, "?norm=layer").page
    page.get_by_role("button", name="clients per round", exact=True).click()
    said = told(page, "After 30 rounds, by clients per round", timeout=60000)
    assert re.findall(r"(\d+) \d+ %", said) == ["1", "2", "3", "5", "10"]
    assert page.locator(".live-many svg").count() == 5
    assert state(page)["cohort"] == "10"  # what was chosen stays
    page.locator("select").first.select_option("none")
    told(page, "Round 0")
    assert page.locator(".live-many svg").count() == 0


@in_browser
@there
def test_the_rows_of_a_classifier_run_furthest_for_the_class_that_a_client_holds(tab):
    page = opened(tab).page
    press(page, "Round")
    told(page, "Round 1:")
    page.locator("summary", has_text="rows before the merge").click()
    dots = page.locator("circle.live-fixed")
    moves = [re.match(r"client (\d+), class (\d): ([\d.]+)", one).groups() for one in dots.all_text_contents()]
    table = np.zeros((10, 10))
    for k, c, move in moves:
        table[int(k) - 1, int(c)] = float(move)
    assert (table.argmax(1) == np.arange(10)).all()


@in_browser
@there
def test_a_drawn_digit_is_read_by_all(tab):
    one = opened(tab)
    page = one.page
    page.locator("summary", has_text="Draw a digit").click()
    page.locator("[data-pixel='0']").focus()
    for key in ("ArrowDown", "ArrowRight", "Space", "ArrowDown", "Space"):
        page.keyboard.press(key)
    pressed = page.locator("[data-pixel][aria-pressed='true']")
    assert [one.get_attribute("data-pixel") for one in pressed.all()] == ["9", "17"]
    page.wait_for_function(
        "document.querySelector('.live details p[role]').textContent.includes('merged network says')"
    )
    press(page, "Round")
    told(page, "Round 1:")
    press(page, "Ask again")
    page.wait_for_function("document.querySelector('.live details p[role]').textContent.includes('client 10: ')")
    said = page.locator(".live details p[role]").inner_text()
    answers = re.findall(r"client (\d+): (\d)", said)
    assert len(answers) == 10 and sum(int(k) == int(c) + 1 for k, c in answers) >= 8  # each says what it has seen
    press(page, "Clear")
    assert not pressed.count() and not one.errors


@in_browser
@there
def test_an_address_without_sense_is_told_and_ignored(tab):
    page = opened(tab, "?norm=layer&lr=7&cohort=11&split=four&held=1.2_3&who=me").page
    said = told(page, "Not understood")
    assert sorted(re.findall(r"\w+=", said)) == ["cohort=", "held=", "lr=", "split=", "who="]
    assert state(page) | {"norm": "layer", "lr": "0.1", "cohort": "10", "split": "one"} == state(page)
    told(opened(tab, "?split=own").page, "ignored: split=own")
    page.get_by_label("local steps").fill("99")
    page.get_by_label("local steps").press("Tab")
    assert told(page, "whole number") == "local steps must be a whole number from 1 to 20."
    page.locator("summary", has_text="as numbers").click()
    page.get_by_label("images of class 3 that client 1 holds", exact=True).fill("5")
    page.keyboard.press("Tab")
    told(page, "Of class 3, 0 images are free for client 1.")


@in_browser
@there
def test_where_nobody_holds_anything_nothing_is_trained(tab):
    page = opened(tab, "?held=" + "_".join([".".join("0" * 10)] * 10)).page
    told(page, "sitting out")
    for words in ("Round", "Play", "Step"):
        press(page, words)
        told(page, "Nobody holds a digit: deal some first.")
    press(page, "one class each")
    told(page, "Round 0")
    press(page, "Round")
    told(page, "Round 1:")


@in_browser
@there
def test_a_run_that_diverges_says_so(tab):
    """At no rate that the page offers is a weight infinite; so one is added."""
    one = tab()
    script = (fl.claims.book_folder() / "_static" / "choices.js").read_text(encoding="utf-8")
    one.page.route("**/choices.js*", lambda route: route.fulfill(body=script.replace('"0.3", "1"]', '"1e200"]')))
    one.page.goto(f"{one.server}/{PAGE}.html?lr=1e200", wait_until="load")
    press(one.page, "Play")
    assert "Try a smaller learning rate" in told(one.page, "Not finite")
    press(one.page, "Start again")
    told(one.page, "Round 0")
    for _ in range(2):  # of the first step, the loss is still finite
        press(one.page, "Step")
        told(one.page, "not merged|Not finite")
    assert "Try a smaller learning rate" in told(one.page, "Not finite")
    assert one.page.get_by_role("button", name="Play").is_visible()


@in_browser
@there
def test_without_scripts_there_is_a_still(tab):
    page = opened(tab, scripts=False).page
    assert "This piece needs scripts" in page.locator(".live").inner_text()


@in_browser
@there
def test_the_claim_of_chapter_2_is_seen_live(tab):
    """One class for each client, 50 rounds, each norm at its best of three rates, three seeds."""
    page = opened(tab).page
    run = """([norm, lr, seed]) => {
      const train = Choices.unpacked(DIGITS.train), test = Choices.unpacked(DIGITS.test);
      const held = Choices.of(train.y), host = liveHost(Federation);
      host({what: "make", net: {sizes: [64, 64, 32, 10], norm, groups: 8}, ...train, test, method: "FedAvg",
            parts: held, lr, steps: 5, cohort: 10, seed, batch: 16, settings: {}});
      let seen; for (let t = 0; t < 50; t++) seen = host({what: "fast"});
      return seen.accuracy;
    }"""
    found = {
        norm: max(np.mean([page.evaluate(run, [norm, lr, seed]) for seed in (1, 2, 3)]) for lr in (0.03, 0.1, 0.3))
        for norm in ("none", "layer", "feature")
    }
    assert min(found["layer"], found["feature"]) > found["none"] + 0.15, found


@in_browser
@there
@pytest.mark.parametrize("dark, width", [*itertools.product([False, True], [390, 1280])])
def test_nothing_bars_the_way(tab, dark, width):
    from axe_playwright_python.sync_playwright import Axe

    page = opened(tab, dark=dark, width=width).page
    press(page, "Round")
    told(page, "Round 1:")
    page.locator("summary", has_text="as numbers").click()
    found = Axe().run(page, context=".live")
    assert not found.response["violations"], found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width

"""The built site in a real browser, with no network: run `jupyter-book build . -W -n --keep-going` first."""

import gzip
import html
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import yaml
from browsing import SITE, in_browser, read
from scoreboard import STANDS

from fedlib.book.bars import Bar
from fedlib.book.claims import VERDICTS, scoreboard, summary

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    entry["file"]
    for entry in [
        {"file": yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["root"]},
        *yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["chapters"],
    ]
]

built = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built (see README.md)")
pytestmark = [pytest.mark.site, built]


def need_scripts(name):
    copied = (SITE / "_static" / "vendor" / "mathjax" / "tex-mml-chtml.js").exists()
    if not copied and "MathJax" in (SITE / f"{name}.html").read_text(encoding="utf-8"):
        pytest.skip("built without npm: this page's formulas need a CDN")


def test_index_leads_to_the_first_page():
    assert PAGES[0] in (SITE / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_page_weighs_at_most_3_mb(name):
    assert (SITE / f"{name}.html").stat().st_size <= 3e6


@pytest.mark.parametrize("name", PAGES)
def test_every_widget_view_has_its_state(name):
    assert read(name).views <= set(read(name).state)


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_has_a_text(name):
    for image in read(name).images:
        alt = image.get("alt") or ""
        assert alt.strip() and not re.search(r"_images/|\.(png|svg|jpe?g)$", alt), image.get("src", "")[:80]
    for frame in read(name).frames:
        assert re.search(r'<img [^>]*alt="[^"]+', frame) or "explore-error" in frame


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_resolve(name):
    for link in read(name).links:
        if urlparse(link).scheme or link.startswith("//"):
            continue
        path, fragment = urldefrag(link)
        target = (SITE / name).parent / unquote(path) if path else SITE / f"{name}.html"
        assert target.exists(), link
        if fragment and target.suffix == ".html" and "_modules" not in target.parts:
            inside = target.resolve().relative_to(SITE.resolve()).with_suffix("").as_posix()
            assert unquote(fragment) in read(inside).ids, link


@pytest.mark.parametrize("name", PAGES)
def test_colab_links_point_at_notebooks_that_are_there(name):
    for link in read(name).links:
        if "colab.research.google.com" in link:
            assert "/./" not in link
            assert (ROOT / "_build" / "colab" / unquote(link.split("/blob/colab/")[1])).is_file(), link


def test_no_notebook_failed():
    assert not list((SITE / "reports").glob("**/*.log"))


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_first_visit_is_offline_light_and_without_errors(name, tab):
    """It asks for less than 1.5 MB, compressed as a server would."""
    need_scripts(name)
    one = tab()
    asked = set()
    one.page.on("request", lambda request: asked.add(urldefrag(request.url.split("?")[0])[0]))
    one.open(name).wait_for_load_state("networkidle")
    assert one.errors == []
    assert one.foreign == []
    sizes = {}
    for url in asked:
        path = unquote(urlparse(url).path).lstrip("/")
        if url.startswith(one.server):
            data = (SITE / path).read_bytes()
            sizes[path] = min(len(data), len(gzip.compress(data, 6)))
    assert f"book/{Path(name).name}.html" in sizes
    assert sum(sizes.values()) < 1.5e6, sorted(sizes.items(), key=lambda item: -item[1])[:8]


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name, dark, tab):
    """Everything in the light; in the dark, where nothing but colours is another, contrast alone."""
    need_scripts(name)
    page = tab(dark=dark).open(name)
    # The theme fades from light to dark once its script runs; half way, no text has the contrast it will have.
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
    serious = violations(page, runOnly=["color-contrast"])
    if not dark:
        serious += violations(page, rules={"color-contrast": {"enabled": False}})
    assert not serious, "\n".join(serious)


def violations(page, **options):
    """What axe calls serious; of a page with twenty modules alike, the colours of the first three."""
    from axe_playwright_python.sync_playwright import Axe

    alike = {"exclude": [["section[id^=module] ~ section[id^=module] ~ section[id^=module] ~ section[id^=module]"]]}
    found = Axe().run(
        page, context=alike if "runOnly" in options else None, options={"resultTypes": ["violations"], **options}
    )
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found.response["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@in_browser
@pytest.mark.parametrize(
    "term, page",
    [("SCAFFOLD", "01_federated_learning"), ("FedYogi", "02_layer_normalization"), ("FedNAR", "04_fednar")],
)
def test_search_finds(term, page, tab):
    found = tab().page
    found.goto(f"{tab.server}/search.html?q={term}")
    found.wait_for_selector(f"#search-results a[href*='{page}']", timeout=10000)
    found.wait_for_selector("#search-results p.context", timeout=10000)
    for quoted in found.locator("#search-results p.context").all_inner_texts():
        assert not re.search(r"\\[a-z(]|[.]pdf|Contents|Show code", quoted), quoted


@in_browser
def test_the_search_field_does_not_hide_its_first_letter(tab):
    found = tab()
    page = found.page
    page.goto(f"{found.server}/search.html")
    box = "[...document.querySelectorAll('article form.bd-search, .bd-search-container form')].at(-1)"
    glass, typed = (
        page.evaluate(f"{box}.querySelector('{part}').getBoundingClientRect().toJSON()") for part in ("i", "input")
    )
    padding = page.evaluate(f"parseFloat(getComputedStyle({box}.querySelector('input')).paddingLeft)")
    assert glass["right"] < typed["left"] + padding


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_phone_does_not_scroll_sideways(name, tab):
    need_scripts(name)
    page = tab(width=390).open(name)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_code_stays_in_its_column(name, tab):
    page = tab().open(name)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    wide = "[...document.querySelectorAll('pre')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
    assert page.evaluate(f"{wide}.map((one) => one.textContent.slice(0, 60))") == []


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_explorers_answer_to_the_keyboard(name, tab):
    explorers = sum("explore" in (model["state"].get("_dom_classes") or []) for model in read(name).state.values())
    if not explorers:
        pytest.skip("no explorer on this page")
    need_scripts(name)
    page = tab().open(name)
    assert page.locator(".explore").count() == explorers
    for box in page.locator(".explore").all():
        for slider in box.locator("input[type=range]").all():
            assert slider.evaluate("node => node.labels.length") == 1
            shown, value = seen(box), slider.get_attribute("aria-valuetext")
            slider.focus()
            page.keyboard.press("ArrowLeft")
            if seen(box) == shown:  # it stood at the first value
                page.keyboard.press("ArrowRight")
            check_another(name, shown, seen(box))
            said = slider.get_attribute("aria-valuetext")
            assert said != value and said == slider.locator("xpath=following-sibling::output").text_content()
        for menu in box.locator("select").all():
            assert menu.evaluate("node => node.labels.length") == 1
            shown = seen(box)
            menu.focus()
            last = menu.evaluate("node => node.selectedIndex == node.options.length - 1")
            page.keyboard.press("ArrowUp" if last else "ArrowDown")
            page.wait_for_timeout(200)
            check_another(name, shown, seen(box))


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_every_frame_of_an_explorer_can_be_reached(name, tab):
    """All settings of all controls, in turn, show all frames."""
    if not read(name).views:
        pytest.skip("no explorer on this page")
    need_scripts(name)
    page = tab().open(name)
    found = page.evaluate("""() => [...document.querySelectorAll(".explore")].map(box => {
      const controls = [...box.querySelectorAll("input[type=range], select")], seen = [];
      const turn = at => {
        if (at === controls.length) {
          seen.push(box.querySelector(".explore-frame, .explore-error").outerHTML);
          return;
        }
        const control = controls[at], menu = control.tagName === "SELECT";
        for (let i = 0; i < (menu ? control.options.length : +control.max + 1); i++) {
          if (menu) control.selectedIndex = i; else control.value = i;
          control.dispatchEvent(new Event("input"));
          turn(at + 1);
        }
      };
      turn(0);
      return seen.map(frame => frame.match(/alt="([^"]*)"|>([^<]*)</).slice(1).join(""));
    })""")
    words = [
        html.unescape("".join(filter(None, re.search('alt="([^"]*)"|>([^<]*)<', frame).groups())))
        for frame in read(name).frames
    ]
    assert sorted(map(html.unescape, sum(found, []))) == sorted(words)


def check_another(name, before, now):
    """Both the text and the picture are another frame's, and belong together."""
    assert now[0] != before[0] and (now[1] != before[1] or not now[1])
    assert any(html.escape(now[0], quote=True) in frame and now[1] in frame for frame in read(name).frames)


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_an_explorer_is_a_picture(name, tab):
    if not read(name).views:
        pytest.skip("no explorer on this page")
    page = tab(scripts=False).open(name)
    stills = page.locator(".explore-still .explore-frame")
    assert stills.count() == len(read(name).views) and not page.locator(".explore").count()
    for still in stills.all():
        assert still.is_visible() and still.evaluate("node => node.naturalWidth") > 300 and still.get_attribute("alt")


def seen(box):
    """The frame that an explorer shows: its text and its picture."""
    frame = box.locator(".explore-frame, .explore-error")
    assert frame.count() == 1
    return frame.evaluate("node => [node.alt || node.textContent, node.src || '']")


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_dark_mode_keeps_text_light_and_figures_readable(name, tab):
    need_scripts(name)
    page = tab(dark=True).open(name)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    lightness = "node => getComputedStyle(node).color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 765"
    assert page.locator("article h1").first.evaluate(lightness) > 0.6
    for label in page.locator(".explore label").all():
        assert label.evaluate(lightness) > 0.5
    for image in page.locator("article .cell_output img").all():
        assert "invert" in image.evaluate("node => getComputedStyle(node).filter")


GRID = """() => [...document.querySelectorAll(".part:has(input[type=range])")].flatMap(part => {
  const slider = part.querySelector("input[type=range]"), seen = [], low = +slider.min, step = +slider.step;
  for (let k = 0; k < 9; k++) {
    slider.value = low + step * Math.round(k / 8 * (slider.max - low) / step);
    slider.dispatchEvent(new Event("input"));
    if (slider.value !== slider.dataset.start) // where it starts stands what is recorded
      for (const line of part.querySelectorAll(".line[data-preset]"))
        seen.push({
          ...line.dataset, ...part.dataset, at: +slider.value,
          said: line.querySelector(".verdict .word").textContent, stands: line.querySelector(".stands").textContent,
        });
  }
  return seen;
})"""


@in_browser
def test_bars_of_the_scoreboard_judge_as_python_does(tab):
    """Every slider at nine places, each preset's verdict and the range that is written beside it."""
    seen = tab().open("book/scoreboard").evaluate(GRID)
    assert len(seen) > 100 and {one["said"] for one in seen} == {*VERDICTS} - {"not run"}
    for one in seen:
        interval = tuple(float(one.get(end, "nan")) for end in ("low", "high"))
        weaker = float(one["weaker"] or "nan")
        easier = weaker < one["at"] if one["sense"] == "at least" else weaker > one["at"]  # False for NaN
        bar = Bar("a", "b", "c", one["sense"], one["at"], "d", "2026-11-28", *((weaker, "e") if easier else ()))
        assert one["said"] == bar.verdict(interval, float(one["rounding"])), one
        if "low" not in one:
            assert one["stands"] == ""
            continue
        near, weaker_is_close = one["near"], abs(interval[one["sense"] != "at least"] - weaker) < float(one["rounding"])
        key = "holds in part" if one["said"] == "undecided" and weaker_is_close else one["said"]
        assert one["stands"] == STANDS[one["sense"]][key].format(near=near, far=one["far"])


@in_browser
def test_a_bar_moved_by_keyboard_changes_verdict_card_and_sum_and_comes_back(tab):
    page = tab().open("book/scoreboard")
    board = page.locator(".argue")
    recorded, status, back = board.inner_text(), board.locator("[role=status]"), board.get_by_role("button")
    assert status.inner_text() == summary(ROOT / "book" / "results") and not back.is_visible()
    card = board.locator(".claim.holds:has(input[type=range])").first
    card = board.locator(f"[data-claim={card.get_attribute('data-claim')}]")  # whatever its verdict becomes
    slider = card.locator("input[type=range]").first
    names = [node.get_attribute("aria-labelledby") for node in board.locator("input[type=range]").all()]
    assert len({*names}) == len(names) and all(
        page.locator(f"#{id}").count() == 1 for name in names for id in name.split()
    )
    demanding = slider.locator("xpath=../..").get_attribute("data-sense") == "at least"
    slider.focus()
    page.keyboard.press("End" if demanding else "Home")
    assert card.get_attribute("data-verdict") in ("does not hold", "holds in part", "undecided")
    assert slider.get_attribute("aria-valuetext").endswith(card.get_attribute("data-verdict"))
    assert "holds" not in card.get_attribute("class").split() and status.inner_text() != recorded.splitlines()[-1]
    assert status.inner_text() != summary(ROOT / "book" / "results") and back.is_visible()
    back.press("Enter")
    assert board.inner_text() == recorded and not back.is_visible()
    assert status.evaluate("node => node === document.activeElement")


@in_browser
def test_without_scripts_the_scoreboard_says_what_is_recorded(tab):
    page = tab(scripts=False).open("book/scoreboard")
    board = page.locator(".argue")
    assert board.locator("[role=status]").inner_text() == summary(ROOT / "book" / "results")
    assert board.locator(".claim").count() == len(scoreboard(ROOT / "book" / "results"))
    assert board.locator("input[type=range]").count() > 10
    assert not any(node.is_visible() for node in board.locator("input[type=range], button").all())

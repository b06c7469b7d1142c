"""How heavy the built pages are, and how soon they answer: ``python benchmarks/pages.py [SITE]``.

Serves the site (default ``_build/html``) from this machine and opens every page in Chromium (``$CHROMIUM`` or the one
on the path) without a cache.

- *weight*: what a first visit fetches, each file compressed as a web server would (gzip, level 6, where that shrinks
  it).
- *interactive*, for a page with an explorer, with the processor slowed down fourfold as Lighthouse does: seconds from
  the start of navigation to the first frame after a step of a slider has changed the explorer's picture, or to the end
  of the last long task (50 ms or more) before two quiet seconds, whichever is later. Median over the repetitions, on a
  machine that does nothing else. The network is its own: a line of 10 Mbit/s adds 0.8 s for each megabyte.
- *round*, for a page with the ten clients: milliseconds of one round of all ten with evaluation, as *Play* takes it, on
  the slowed processor and without a worker (a worker is not slowed down).
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.server
import os
import shutil
import statistics
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SLOWER = 4
QUIET = 2.0  # seconds
FRONT = "intro"
BUDGET = {"weight": 1.5e6, "interactive": 3.0, "round": 120}  # bytes, every page; seconds, front page; milliseconds
WATCH = """
window.longTasks = [0];
new PerformanceObserver(list => list.getEntries().forEach(task => longTasks.push(task.startTime + task.duration)))
  .observe({type: "longtask", buffered: true});
"""
ANSWERS = """
() => new Promise(done => {
  let shown = null;
  const look = () => {
    const slider = document.querySelector(".explore input[type=range]");
    const frame = document.querySelector(".explore .explore-frame");
    if (slider && frame) {
      shown = shown || frame.alt;
      if (frame.alt !== shown) return done(performance.now());
      slider.value = slider.value === slider.min ? +slider.value + 1 : slider.value - 1;
      slider.dispatchEvent(new Event("input", {bubbles: true}));
    }
    requestAnimationFrame(look);
  };
  look();
})
"""

ROUND = """
() => {
  const train = Choices.unpacked(DIGITS.train), test = Choices.unpacked(DIGITS.test), host = liveHost(Federation);
  host({what: "make", net: {sizes: [64, 64, 32, 10], norm: "layer", groups: 8}, ...train, test, method: "FedAvg",
        parts: Choices.of(train.y), lr: 0.1, steps: 5, cohort: 10, seed: 1, batch: 16, settings: {}});
  const times = Array.from({length: 25}, () => {
    const start = performance.now();
    host({what: "play"});
    return performance.now() - start;
  });
  return times.slice(5).sort((a, b) => a - b)[10];  // the first warm the compiler
}
"""


def weigh(browser: Browser, site: Path, server: str, page: str) -> int:
    """Compressed bytes that a page fetches."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    asked = set()
    tab = context.new_page()
    tab.on("request", lambda request: asked.add(request.url.split("?")[0].split("#")[0]))
    tab.goto(f"{server}/{page}", wait_until="networkidle")
    tab.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager')")
    tab.wait_for_load_state("networkidle")
    context.close()
    files = [(site / unquote(urlparse(url).path).lstrip("/")).read_bytes() for url in asked if url.startswith(server)]
    return sum(min(len(data), len(gzip.compress(data, 6))) for data in files)


def interactive(browser: Browser, server: str, page: str) -> float:
    """Seconds until a page's first explorer answers and the page is quiet, the processor slowed down."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.add_init_script(WATCH)
    context.new_cdp_session(tab).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    tab.goto(f"{server}/{page}", wait_until="commit")
    answered = tab.evaluate(ANSWERS)
    while tab.evaluate(f"performance.now() - Math.max(...longTasks, {answered})") < 1000 * QUIET:
        tab.wait_for_timeout(200)
    last = tab.evaluate("Math.max(...longTasks)")
    context.close()
    return max(answered, last) / 1000


def round_time(browser: Browser, server: str, page: str) -> float:
    """Milliseconds of a round of the ten clients, the processor slowed down."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    context.new_cdp_session(tab).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    tab.goto(f"{server}/{page}", wait_until="load")
    found = tab.evaluate(ROUND)
    context.close()
    return found


def serve(site: Path) -> http.server.ThreadingHTTPServer:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """No line for every request."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--repeat", type=int, default=5, help="openings of each page with an explorer; 0: none")
    given = parser.parse_args()
    pages = sorted((given.site / "book").glob("*.html"))
    if not pages:
        parser.error(f"no pages in {given.site / 'book'}: build the book first")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    server = serve(given.site)
    address = f"http://127.0.0.1:{server.server_port}"
    print(
        f"{'page':32s} {'weight':>9s} {'interactive, CPU / ' + str(SLOWER):>20s} {'round, CPU / ' + str(SLOWER):>15s}"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in pages:
            page = f"book/{path.name}"
            weight = weigh(browser, given.site, address, page)
            seconds = milliseconds = None
            text = path.read_text(encoding="utf-8")
            if given.repeat and 'data-piece="clients"' in text:
                milliseconds = statistics.median(round_time(browser, address, page) for _ in range(given.repeat))
            if given.repeat and "SelectionSliderModel" in text:
                seconds = statistics.median(interactive(browser, address, page) for _ in range(given.repeat))
            shown = f"{seconds:18.2f} s" if seconds is not None else f"{'–':>20s}"
            late = path.stem == FRONT and (seconds or 0) > BUDGET["interactive"]
            late |= (milliseconds or 0) > BUDGET["round"]
            shown += f" {milliseconds:12.0f} ms" if milliseconds is not None else f" {'–':>15s}"
            over = " over budget" if weight > BUDGET["weight"] or late else ""
            print(f"{path.stem:32s} {weight / 1e6:6.2f} MB {shown}{over}", flush=True)
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()

"""The built site, a server for it and a browser: fixtures of every test, and how a page is read."""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
# sphinx-thebe is loaded on every page and declares its variable twice; nothing uses it.
HARMLESS = re.compile(r"THEBE_JS_URL")

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; set $CHROMIUM to its path")


class Page(HTMLParser):
    """What the tests look at in a page: ids, links, pictures, widget views, widget state, frames of explorers."""

    def __init__(self, name):
        super().__init__()
        self.ids, self.links, self.images, self.views, self.state = set(), [], [], set(), {}
        self._script = None
        text = (SITE / f"{name}.html").read_text(encoding="utf-8")
        self.feed(text)
        self.frames = re.findall(r'<div class="explore-still">(.*?)</div>', text)
        self.frames += [
            m["state"]["value"] for m in self.state.values() if m["model_name"] == "HTMLModel" and m["state"]["value"]
        ]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag == "img":
            self.images.append(attrs)
        elif tag == "script":
            self._script = attrs.get("type")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script == "application/vnd.jupyter.widget-view+json":
            self.views.add(json.loads(data)["model_id"])
        elif self._script == "application/vnd.jupyter.widget-state+json":
            self.state = json.loads(data)["state"]


@functools.cache
def read(name):
    return Page(name)


@pytest.fixture(scope="module")
def server():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """No line for every request."""

    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Tab:
    """A browser tab that reaches nothing but the site and notes what went wrong."""

    def __init__(self, browser, server, width=1280, dark=False, scripts=True, touch=False):
        self.server, self.errors, self.foreign = server, [], []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            java_script_enabled=scripts,
            color_scheme="dark" if dark else "light",
            has_touch=touch,
        )
        self.explorer = ".explore" if scripts else ".explore-still"
        self.page = self.context.new_page()
        self.page.route("**/*", self._route)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        self.page.on("response", lambda answer: answer.status >= 400 and self._note(f"{answer.status} {answer.url}"))

    def _note(self, text):
        if not HARMLESS.search(text):
            self.errors.append(text)

    def _route(self, route):
        url = route.request.url
        if url.startswith((self.server, "data:", "blob:")):
            route.continue_()
        else:
            self.foreign.append(url)
            route.abort()

    def open(self, name):
        self.page.goto(f"{self.server}/{name}.html", wait_until="load")
        if read(name).views:
            self.page.wait_for_selector(self.explorer, timeout=30000)
        return self.page


@pytest.fixture
def tab(browser, server):
    tabs = []

    def make(**options):
        tabs.append(Tab(browser, server, **options))
        return tabs[-1]

    make.server = server
    yield make
    for one in tabs:
        one.context.close()

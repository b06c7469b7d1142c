"""What the build does beyond Jupyter Book's own settings.

- puts the scoreboard, made from ``book/results/*.json``, where a page says ``{{ scoreboard }}``;
- puts the tables and curves of every record beside the pages, as CSV;
- shows explorers with a script of our own, and copies MathJax, at the version in package.json, into the site, so that
  it works without a network; without npm MathJax comes from its CDN, and the build says so;
- mends markup of the tools below it that a screen reader stumbles over;
- writes a copy of each notebook that reads well without Sphinx, and points the Colab buttons at it (``portable.py``);
- throws away executed notebooks when what they ran on has changed, which their cache does not see (``executed.py``).
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import executed
import portable
import scoreboard
from sphinx.util import logging

from fedlib.book import card, claims, live

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
VENDOR = BOOK / "_static" / "vendor"

# package -> {pattern of its files: where they go below vendor/}
FILES = {
    "mathjax": {
        "package/es5/tex-mml-chtml.js": "mathjax",
        "package/es5/output/chtml/fonts/woff-v2/*": "mathjax/output/chtml/fonts/woff-v2",
    }
}
CSV = {"curves": claims.curves_frame, "tables": claims.tables_frame}  # what of a record can be downloaded
SCRIPTS = {"book/scoreboard": ["scoreboard.js"], "search": ["search.js"]}
log = logging.getLogger(__name__)


def setup(app):
    app.setup_extension("lighten")
    app.add_config_value("fedbook_state", "", "env")  # a new value makes Sphinx read every page again
    app.connect("config-inited", write_scoreboard)
    app.connect("config-inited", serve_scripts)
    app.connect("config-inited", drop_stale_notebooks)
    app.connect("html-page-context", mend_markup)
    app.connect("html-page-context", add_scripts)
    app.connect("html-page-context", open_copies, priority=900)  # after the theme has made its buttons
    app.connect("build-finished", portable.write_copies)
    app.connect("build-finished", write_digits)
    app.connect("build-finished", write_csv)
    app.connect("autodoc-process-signature", drop_addresses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_scoreboard(app, config):
    results = BOOK / "results"
    board, summary = scoreboard.chapters(results, chapter_titles()), claims.summary(results)
    config.myst_substitutions = {
        **(config.myst_substitutions or {}),
        "scoreboard": scoreboard.cards(board, summary),
        "scoreboard_brief": scoreboard.brief(board),
        "scoreboard_summary": summary,
        "provenance": provenance_list(results),
        "versions": version_table(),
        "machine": machine(),
    }


def write_csv(app, error):
    if error is None and app.builder.format == "html":
        for path in sorted((BOOK / "results").glob("*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            for kind, frame in CSV.items():
                file = Path(app.outdir) / "results" / f"{path.stem}.{kind}.csv"
                file.parent.mkdir(exist_ok=True)
                frame(result).to_csv(file, index=False)


def chapter_titles() -> dict[str, str]:
    """Name of each chapter's notebook -> its title, the first line."""
    cells = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["cells"][0] for path in BOOK.glob("[0-9][0-9]_*.ipynb")
    }
    return {name: "".join(cell["source"]).splitlines()[0].removeprefix("# ") for name, cell in cells.items()}


def provenance_list(results: Path) -> str:
    """One line for each recorded run, with its numbers as CSV."""
    lines = [
        f"- [](/book/{name}.ipynb), {preset}: {claims.provenance(result)}; "
        + ", ".join(f'<a href="../results/{name}.{preset}.{kind}.csv" download>{kind}</a>' for kind in CSV)
        for name, presets in claims.load_results(results).items()
        for preset, result in presets.items()
        if preset in claims.PRESETS
    ]
    return "\n".join(lines) or "No run is recorded yet."


def version_table() -> str:
    """Versions of what this build ran with."""
    names = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "ipywidgets", "jupyter-book", "sphinx")
    rows = [("Python", platform.python_version()), *((name, metadata.version(name)) for name in names)]
    return "\n".join(["| package | version |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def machine() -> str:
    """What this build ran on, in words."""
    found = card.hardware()
    return f"{found['cpu']}, {found['cores']} cores, {found['gpu'] or 'no GPU'}"


def serve_scripts(app, config):
    """Choose where pages get their scripts."""
    config.nb_ipywidgets_js = {"explorers.js": {"defer": ""}}  # on pages with widgets only
    try:
        fetch_scripts()
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        log.info("fedbook: MathJax comes from its CDN, formulas need a network (npm: %s)", error)
        return
    config.mathjax_path = "vendor/mathjax/tex-mml-chtml.js"


def fetch_scripts():
    """Fill ``_static/vendor`` from npm, once for every set of versions."""
    versions = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))["dependencies"]
    wanted_now = {"versions": versions, "files": FILES}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    stamp = VENDOR / "versions.json"
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == wanted_now:
        return
    shutil.rmtree(VENDOR, ignore_errors=True)
    for package, wanted in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--fetch-retries=0", "--fetch-timeout=30000", f"{package}@{versions[package]}"]
            subprocess.run(command, cwd=folder, check=True, timeout=120, **quiet)
            (packed,) = Path(folder).glob("*.tgz")
            extract(packed, wanted, VENDOR / f"LICENSE.{package.split('/')[-1]}")
    stamp.write_text(json.dumps(wanted_now, indent=1), encoding="utf-8")


def extract(packed: Path, wanted: dict[str, str], licence: Path):
    with tarfile.open(packed) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar.getmembers()):
            name = Path(member.name).name
            targets = [VENDOR / to / name for glob, to in wanted.items() if fnmatch(member.name, glob)]
            targets += [licence] if member.name == "package/LICENSE" else []
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def drop_addresses(app, what, name, obj, options, signature, annotation):
    """No signature where defaults are not Python, such as ``<function f at 0x7f..>``: it cannot be laid out."""
    return ("", annotation) if signature and re.search("<function| at 0x", signature) else None


def mend_markup(app, pagename, templatename, context, doctree):
    """Sphinx lays out long signatures as definitions without terms, and references as a list without items.

    The table of executed notebooks names files and marks them with a picture that few fonts have.
    """
    if "body" not in context:
        return
    body = re.sub("<!--live-->.*?<!--/live-->", "", context["body"], flags=re.S)  # the page has these scripts as files
    body = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    lines = re.compile(r'<dl>\s*((?:<dd><em class="sig-param">(?:(?!</?d[dl]>).)*</dd>\s*)+)</dl>', re.S)
    context["body"] = lines.sub(
        lambda found: '<span class="sig-lines">' + re.sub("<(/?)dd>", r"<\1span>", found[1]) + "</span>", body
    )
    if pagename == "book/status":
        body = context["body"].replace("✅", "✓ ran").replace("❌", "✗ failed")
        titles = {"intro": "Front page", "benchmarks": "How fast it is", **chapter_titles()}
        context["body"] = re.sub(r">book/(\w+)</", lambda found: f">{titles.get(found[1], found[1])}</", body)


def open_copies(app, pagename, templatename, context, doctree):
    """The theme's Colab button opens the notebook's copy, on a branch of its own."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if "colab.research.google.com" in button.get("url", ""):
                button["url"] = re.sub("/blob/[^/]+/(?:[.]/)?", f"/blob/{portable.BRANCH}/", button["url"])


def add_scripts(app, pagename, templatename, context, doctree):
    """Scripts that a page needs by itself, in their order."""
    pieces = live.used(context.get("body", ""))
    for number, name in enumerate(SCRIPTS.get(pagename, []) + pieces):
        app.add_js_file(name, priority=500 + number, loading_method="defer")
    if pieces:
        app.add_css_file("live.css")


def write_digits(app, error):
    """The data of the ten clients, as a script, so that a page from disk has them, too."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "_static" / "digits.js").write_text(live.digits(), encoding="utf-8")


def drop_stale_notebooks(app, config):
    """Key executed notebooks on what they were executed on, of which jupyter-cache knows nothing."""
    now = executed.state()
    config.fedbook_state = json.dumps(now)
    cache = Path(config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")
    if cache.exists() and not executed.holds(cache):
        log.info("fedbook: code, recorded runs or installed packages have changed, notebooks are executed again")
        shutil.rmtree(cache)
    executed.write_stamp(cache, now)

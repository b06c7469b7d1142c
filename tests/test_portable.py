"""Copies of the notebooks for Colab and GitHub: what a reader without Sphinx sees."""

import html
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urldefrag

import nbformat
import portable
import pytest
import yaml
from pybtex.database import parse_string

import fedlib as fl

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
COPIES = ROOT / "_build" / "colab" / "book"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))
CITED = parse_string(
    """
    @article{one, author = {Ba, Jimmy}, title = {T}, year = {2016}, eprint = {1607.06450}}
    @article{two, author = {{van den Berg}, Ada and Chen, Xi}, title = {T}, year = {2020}, url = {https://two.org}}
    @article{many, author = {A, B and C, D and E, F}, title = {T}, year = {2021}}
    """,
    "bibtex",
).entries


@pytest.fixture
def words():
    env = SimpleNamespace(
        toc_fignumbers={
            "book/02_x": {
                "figure": {"fig-a": (7,)},
                "displaymath": {"equation-e": (3,), "equation-lines": (4,)},
                "exercise": {"ex": (5,)},
                "theorem": {"th": (1,)},
            }
        },
        domaindata={
            "std": {
                "labels": {"above": ("book/02_x", "above", "Above")},
                "anonlabels": {"fig-a": ("book/02_x", "fig-a")},
                "terms": {"local step": ("book/glossary", "term-local-step")},
            },
            "math": {"objects": {"e": ("book/02_x", 1)}},
        },
        config=SimpleNamespace(myst_substitutions={"table": '<a href="03_y.html#claim-z">z</a>'}),
    )
    return portable.Words(env, "book/02_x", "https://o.github.io/r/", CITED, {"gain": "+5 points", "of {x}": "no"})


@pytest.mark.parametrize(
    "source, plain",
    [
        ("**{glue:text}`gain`**", "**+5 points**"),
        ("of {cite:t}`one`", "of [Ba (2016)](https://arxiv.org/abs/1607.06450)"),
        ("{cite:p}`two`", "([van den Berg and Chen, 2020](https://two.org))"),
        ("{cite:t}`many`", "[A et al. (2021)](https://o.github.io/r/book/references.html)"),
        ("{term}`local\nstep`", "[local\nstep](https://o.github.io/r/book/glossary.html#term-local-step)"),
        ("{term}`steps <Local step>`", "[steps](https://o.github.io/r/book/glossary.html#term-local-step)"),
        ("see {eq}`e` and {numref}`fig-a`", "see (3) and Fig. 7"),
        ("(above)=\n## A heading", "## A heading"),
        ("[a](#claim-b)", "[a](https://o.github.io/r/book/02_x.html#claim-b)"),
        ("[a](above)", "[a](https://o.github.io/r/book/02_x.html#above)"),
        ("[a](03_y.ipynb#b)", "[a](https://o.github.io/r/book/03_y.html#b)"),
        ("[a](glossary.md)", "[a](https://o.github.io/r/book/glossary.html)"),
        ("[a](https://x.org/y)", "[a](https://x.org/y)"),
        ("{{ table }}", '<a href="https://o.github.io/r/book/03_y.html#claim-z">z</a>'),
        ("```{math}\n:label: e\nx^2\n```", "$$\nx^2\n\\tag{3}\n$$"),
        (
            "```{math}\n:label: lines\na &= b \\\\\nc &= d\n```",
            "$$\n\\begin{aligned}\na &= b \\\\\nc &= d\n\\end{aligned}\n\\tag{4}\n$$",
        ),
        ("```{math}\ny\n```", "$$\ny\n$$"),
        (":::{admonition} We\n:class: tip\n\n**{glue:text}`gain`**\nmore\n:::", "> **We**\n>\n> **+5 points**\n> more"),
        ("```{exercise} Why?\n:label: ex\n\nBecause.\n```", "**Exercise 5** (Why?)\n\nBecause."),
        (
            "````{solution} ex\n:class: dropdown\n\nRun\n\n```python\nf(:)\n```\n````",
            "<details>\n<summary>Solution to Exercise 5</summary>\n\nRun\n\n```python\nf(:)\n```\n\n</details>",
        ),
        ("```{solution-start} ex\n:class: dropdown\n```\n\nRun\n", "**Solution to Exercise 5**\n\nRun\n"),
        ("Done.\n\n```{solution-end}\n```", "Done.\n\n"),
        (":::{prf:theorem} Big\n:label: th\nTrue.\n:::", "> **Theorem 1** (Big)\n>\n> True."),
        ("a set $\\{x\\}$ and `code`", "a set $\\{x\\}$ and `code`"),
    ],
)
def test_what_only_sphinx_understands_is_said_in_plain_markdown(words, source, plain):
    assert words.plain(source) == plain


@pytest.mark.parametrize("source", ["{doc}`x`", ":::{note}\nx\n:::", "```{code-cell}\nx\n```"])
def test_what_has_no_words_stops_the_build(words, source):
    with pytest.raises(ValueError, match="book/02_x: the copy for Colab has no words for the (role|directive)"):
        words.plain(source)


def test_a_repository_of_its_owners_pages_is_published_at_the_root():
    assert portable.published("https://github.com/o/r/") == ("https://o.github.io/r/", "o/r")
    assert portable.published("https://github.com/O/o.github.io") == ("https://O.github.io/", "O/o.github.io")


def test_the_workflow_puts_the_copies_on_their_branch(tmp_path):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8"))
    (step,) = [step for step in workflow["jobs"]["publish"]["steps"] if step.get("working-directory") == "colab"]
    remote = tmp_path / "someone" / "else"
    subprocess.run(["git", "init", "-q", "--bare", remote], check=True)
    env = os.environ | {"GITHUB_SERVER_URL": tmp_path.as_uri(), "GITHUB_REPOSITORY": "someone/else", "TOKEN": "secret"}
    for sha, text in (("aaa", "first"), ("bbb", "second")):  # as two runs would, each in a folder of its own
        folder = tmp_path / sha
        folder.mkdir()
        (folder / "README.md").write_text(text, encoding="utf-8")
        subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=folder, env=env | {"GITHUB_SHA": sha}, check=True, timeout=60
        )
    git = ["git", "-C", remote]
    assert subprocess.check_output([*git, "show", "colab:README.md"], text=True) == "second"
    assert subprocess.check_output([*git, "log", "--format=%s", "colab"], text=True) == "The notebooks of bbb\n"


# --- the copies as built ---

built = pytest.mark.skipif(not COPIES.exists(), reason="the site is not built (see README.md)")


def visible(name):
    """The text of a built page, entities resolved, quotes straight and markup dropped."""
    text = (SITE / "book" / f"{name}.html").read_text(encoding="utf-8")
    return _straight(" ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split()))


def _straight(text):
    return re.sub("[“”]", '"', text.replace("’", "'").replace("‘", "'"))


def copied(name):
    return nbformat.read(COPIES / f"{name}.ipynb", as_version=4)


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.mark.site
@built
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_of_a_copy_is_the_notebooks_own(name):
    own = nbformat.read(ROOT / "book" / f"{name}.ipynb", as_version=4)
    code = [[cell.source for cell in notebook.cells if cell.cell_type == "code"] for notebook in (own, copied(name))]
    assert code[0] == code[1]
    tags = [
        [cell.metadata.get("tags") for cell in notebook.cells if cell.cell_type == "code"]
        for notebook in (own, copied(name))
    ]
    assert tags[0] == tags[1]
    nbformat.validate(copied(name))
    assert (SITE / "_sources" / "book" / f"{name}.ipynb").read_bytes() == (COPIES / f"{name}.ipynb").read_bytes()


@pytest.mark.site
@built
@pytest.mark.parametrize("name", sorted({path.name.split(".")[0] for path in (ROOT / "book/params").glob("*.yaml")}))
def test_a_copy_says_how_to_take_another_preset_and_opens_itself(name):
    copy = copied(name)
    (at,) = [i for i, cell in enumerate(copy.cells) if "parameters" in cell.metadata.get("tags", [])]
    (call,) = re.findall(r"`globals\(\).update\((.*)\)`", copy.cells[at + 1].source)
    assert eval(call, {"fl": fl})["preset"] == "colab"
    first = copy.cells[0].source.splitlines()
    assert first[0].startswith("# ") and f"/blob/colab/book/{name}.ipynb)" in first[2]


@pytest.mark.site
@built
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_copy_has_no_markup_of_sphinx_left(name):
    without_code = re.sub(r"^```.*?^```$|`[^`\n]+`", "", prose(copied(name)), flags=re.M | re.S)
    assert not re.findall(r"\{[a-z:]+\}`|^[:`]{3,}.*$|\{\{.*|^:[a-z-]+:.*$|^\([\w-]+\)=$", without_code, re.M)


@pytest.mark.site
@built
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_copy_has_the_figures_of_the_page(name):
    """Also of a build that executed nothing, since all was in its cache."""
    copy = copied(name)
    for cell, after in zip(copy.cells, copy.cells[1:], strict=False):
        if after.source.startswith("**Fig. "):
            shown = [output.get("data", {}) for output in cell.outputs]
            live = any('class="live"' in data.get("text/html", "") for data in shown)
            assert live or any("image/png" in data for data in shown), after.source[:60]


@pytest.mark.site
@built
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_copy_says_what_the_page_says(name):
    """Glued numbers in their sentences, numbers of figures, exercises and equations."""
    page, copy = visible(name), prose(copied(name))
    figures = re.findall(r"^\*\*Fig\. (\d+)\.\*\* ([^\n$`*\[]{10,60})", copy, re.M)
    for number, caption in figures:
        assert f"Fig. {number} {caption.strip()}" in page.replace(f"Fig. {number}#", f"Fig. {number} "), caption
    for number, title in re.findall(r"^\*\*Exercise (\d+)\*\* \(([^`$\n]+)\)$", copy, re.M):
        assert f"Exercise {number} ({title})" in page
    own = nbformat.read(ROOT / "book" / f"{name}.ipynb", as_version=4)
    assert copy.count("**Fig. ") == sum("figure" in cell.metadata.get("mystnb", {}) for cell in own.cells)
    glued = portable.glued(portable.executed(ROOT / "book" / f"{name}.ipynb", ROOT / "_build" / ".jupyter_cache"))
    for key in re.findall(r"\{glue:text\}`([^`]+)`", prose(own)):
        assert glued[key] in copy and _straight(" ".join(glued[key].split())) in page, key


@pytest.mark.site
@built
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_of_a_copy_lead_to_what_the_site_has(name):
    site, _ = portable.published(
        yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    )
    links = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"^```.*?^```$", "", prose(copied(name)), flags=re.M | re.S))
    assert links and all(link.startswith("https://") for link in links)
    for link in (link for link in links if link.startswith(site)):
        page, anchor = urldefrag(link.removeprefix(site))
        text = (SITE / page).read_text(encoding="utf-8")
        assert not anchor or f'id="{anchor}"' in text, link

"""A copy of every notebook for readers whom Sphinx does not reach: on Colab and on GitHub.

A chapter's Markdown is full of roles and directives that only the built site resolves. The copy says the same in plain
Markdown: numbers of the run stand where ``{glue:text}`` did, citations and terms are links, formulas, figures and
exercises have the numbers that they have on the site. Code is the notebook's own to the letter, so a copy is labelled,
re-run and resumed like it. Copies lie in ``_build/colab``; the workflow puts that folder on the branch ``colab``, which
the Colab buttons open.
"""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from pybtex.database import parse_file

BRANCH = "colab"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_ROLE = re.compile(r"\{([a-z]+(?::[a-z]+)?)\}`([^`]+)`")
_TARGETED = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", re.S)
_FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\} *(?P<title>.*)\n(?P<body>(?:.*\n)*?)(?P=fence) *$", re.M
)
_OPTION = re.compile(r"^:(?P<key>[\w-]+): *(?P<value>.*)\n", re.M)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<url>[^()\s]+)\)")
_NOTE = """\
{badge}

This is [a page of the book]({page}) as a notebook. *Run all* makes everything anew, with sliders. The numbers in the
text are those of the run that made the page; those of your run stand in its tables and figures."""
_PRESETS = """\
These are the values of the preset `quick`. For those of another one, `colab` say, choose a GPU and run
`globals().update(fl.chapter.preset("{chapter}", "colab"))` in a new cell here."""
_README = """\
# The notebooks of *{title}*, to be read and run here

They are made by the build of [the book]({site}) from notebooks on another branch; edit those.

"""
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


class Words:
    """What the roles and directives of one page say, from the environment of a finished build."""

    def __init__(self, env: Any, docname: str, site: str, cited: dict[str, Any], glued: dict[str, str]):
        self.env, self.docname, self.site, self.cited, self.glued = env, docname, site, cited, glued

    def plain(self, text: str) -> str:
        """A page's Markdown in words that every Markdown reader knows."""
        text = re.sub(r"^\([\w-]+\)=(?:\n|\Z)", "", text, flags=re.M)
        text = _FENCE.sub(self._directive, text)
        text = re.sub(r"\{\{ *(\w+) *\}\}", lambda found: self._substitution(found[1]), text)
        text = _ROLE.sub(lambda found: self._role(found[1], found[2]), text)
        return _LINK.sub(lambda found: f"[{found['text']}]({self.address(found['url'])})", text)

    def address(self, url: str) -> str:
        """Where a link of this page leads on the published site."""
        page, _, anchor = url.partition("#")
        if ":" in page:
            return url
        if not anchor and "." not in page:  # a target of MyST, as in [above](ch2-32)
            docname, anchor, *_ = self._target(page)
            return f"{self.site}{docname}.html#{anchor}"
        page = re.sub(r"\.(?:ipynb|md)$", ".html", page) or f"{self.docname.split('/')[-1]}.html"
        return urljoin(f"{self.site}{self.docname}", page) + (f"#{anchor}" if anchor else "")

    def number(self, kind: str, anchor: str, docname: str | None = None) -> str:
        """The number that the site gives to a figure, an equation, a theorem or an exercise."""
        return ".".join(map(str, self.env.toc_fignumbers[docname or self.docname][kind][anchor]))

    def _target(self, label: str) -> tuple[str, ...]:
        found = self.env.domaindata["std"]
        return found["labels"].get(label) or found["anonlabels"][label]

    # --- roles ---

    def _role(self, name: str, content: str) -> str:
        split = _TARGETED.fullmatch(content)
        text, target = (split["text"], split["target"]) if split else (content, content)
        match name:
            case "glue:text":
                return self.glued[target]
            case "cite:t" | "cite:p":
                return self._citation(target, parenthetical=name == "cite:p")
            case "term":
                page, anchor = self.env.domaindata["std"]["terms"][" ".join(target.split()).lower()]
                return f"[{text}]({self.site}{page}.html#{anchor})"
            case "eq":
                page, _ = self.env.domaindata["math"]["objects"][target]
                return f"({self.number('displaymath', f'equation-{target}', page)})"
            case "numref":
                page, anchor, *_ = self._target(target)
                return f"Fig. {self.number('figure', anchor, page)}"
        raise ValueError(f"{self.docname}: the copy for Colab has no words for the role {{{name}}}`{content}`")

    def _citation(self, key: str, parenthetical: bool) -> str:
        entry = self.cited[key]
        names = [" ".join(person.last_names).strip("{}") for person in entry.persons["author"]]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        where = entry.fields.get("url") or f"{self.site}book/references.html"
        if "eprint" in entry.fields:
            where = f"https://arxiv.org/abs/{entry.fields['eprint']}"
        return (
            f"([{who}, {entry.fields['year']}]({where}))"
            if parenthetical
            else f"[{who} ({entry.fields['year']})]({where})"
        )

    # --- directives ---

    def _directive(self, found: re.Match[str]) -> str:
        body = found["body"]
        options = {option["key"]: option["value"] for option in _OPTION.finditer(body)}
        body, title, name = _OPTION.sub("", body).strip("\n"), found["title"], found["name"]
        label = options.get("label", title)
        match name:
            case "math":
                body = (
                    f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}" if r"\\" in body and r"\begin" not in body else body
                )
                tag = f"\n\\tag{{{self.number('displaymath', f'equation-{label}')}}}" if "label" in options else ""
                return f"$$\n{body}{tag}\n$$"
            case "admonition":
                return _quoted(f"**{title}**\n\n{_FENCE.sub(self._directive, body)}")
            case "exercise":
                return f"**Exercise {self.number('exercise', label)}** ({title})\n\n{body}"
            case "solution":
                summary = f"Solution to Exercise {self.number('exercise', label)}"
                return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
            case "solution-start":  # code cells follow, which nothing can fold on Colab
                return f"**Solution to Exercise {self.number('exercise', label)}**"
            case "solution-end":
                return ""
            case "prf:theorem":
                return _quoted(f"**Theorem {self.number('theorem', label)}** ({title})\n\n{body}")
        raise ValueError(f"{self.docname}: the copy for Colab has no words for the directive {{{name}}}")

    def _substitution(self, name: str) -> str:
        text = self.env.config.myst_substitutions[name]
        return re.sub(r'href="([^"]+)"', lambda found: f'href="{self.address(found[1])}"', text)


def write_copies(app: Any, error: Exception | None) -> None:
    """At the end of a build of the site: write the copy of every notebook."""
    if error or app.builder.name != "html":
        return
    site, repository = published(app.config.html_theme_options["repository_url"])
    cited = parse_file(str(Path(app.srcdir) / app.config.bibtex_bibfiles[0])).entries
    folder, contents = Path(app.outdir).parent, _README.format(title=app.config.html_title, site=site)
    cache = Path(app.config.nb_execution_cache_path or folder / ".jupyter_cache")
    for docname in sorted(app.env.found_docs, key=lambda name: (name != app.config.root_doc, name)):
        source = Path(app.env.doc2path(docname))
        if source.suffix == ".ipynb" and (notebook := executed(source, cache)) is not None:
            words = Words(app.env, docname, site, cited, glued(notebook))
            text = nbformat.writes(filled_in(notebook, words, figures(app.env.get_doctree(docname)), repository))
            # the second is what the page's download button gives
            for path in (folder / "colab" / f"{docname}.ipynb", Path(app.outdir) / "_sources" / f"{docname}.ipynb"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            contents += f"- [{app.env.titles[docname].astext()}]({docname}.ipynb)\n"
    (folder / "colab" / "README.md").write_text(contents, encoding="utf-8")


def executed(source: Path, cache: Path) -> Any:
    """A notebook with its outputs, from the build's cache; None where it failed.

    What a build leaves in ``jupyter_execute`` has outputs only if it was this build that executed the notebook.
    """
    try:
        return get_cache(cache).merge_match_into_notebook(nbformat.read(source, as_version=4))[1]
    except KeyError:
        return None


def published(repository: str) -> tuple[str, str]:
    """(address of the site, OWNER/REPOSITORY) of a repository on GitHub."""
    owner, name = repository.rstrip("/").split("/")[-2:]
    site = f"https://{owner}.github.io/"
    return (site if name.lower() == f"{owner}.github.io".lower() else f"{site}{name}/"), f"{owner}/{name}"


def glued(notebook: Any) -> dict[str, str]:
    """What ``glue`` kept in an executed notebook: name -> text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return {
        output.metadata["scrapbook"]["name"]: ast.literal_eval(output.data["text/plain"])
        for output in outputs
        if "scrapbook" in output.get("metadata", {})
    }


def figures(doctree: nodes.document) -> dict[int, str]:
    """Position of a cell -> anchor of the figure that it draws."""
    found = {}
    for figure in doctree.findall(nodes.figure):
        place = figure.parent
        while place is not None and "cell_index" not in place.attributes:
            place = place.parent
        if place is not None:
            found[place["cell_index"]] = figure["ids"][0]
    return found


def filled_in(notebook: Any, words: Words, drawn: dict[int, str], repository: str) -> Any:
    """The copy of an executed notebook; ``drawn`` is what :func:`figures` says of it."""
    name, cells = words.docname.split("/")[-1], []
    for i, cell in enumerate(notebook.cells):
        cell = copy.deepcopy(cell)
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = words.plain(cell.source)
        else:
            _simplify(cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(nbformat.v4.new_markdown_cell(_PRESETS.format(chapter=name), id="presets"))
        if i in drawn:
            caption = words.plain(cell.metadata["mystnb"]["figure"]["caption"])
            caption = f"**Fig. {words.number('figure', drawn[i])}.** {caption}"
            cells.append(nbformat.v4.new_markdown_cell(caption, id=f"caption-{i}"))
    own = f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{words.docname}.ipynb"
    note = _NOTE.format(badge=f"[![Open in Colab]({BADGE})]({own})", page=f"{words.site}{words.docname}.html")
    title, _, rest = re.sub(r"\n\[!\[Open in Colab\][^\n]*\n", "", cells[0].source).partition("\n")
    cells[0].source = f"{title}\n\n{note}\n{rest}"
    metadata = {key: value for key, value in notebook.metadata.items() if key != "widgets"}
    metadata["colab"] = {"name": f"{name}.ipynb", "toc_visible": True}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _simplify(cell: Any) -> None:
    """Fold away what the site folds away or leaves out, and keep what shows without a kernel or Sphinx."""
    if FOLDED & set(cell.metadata.get("tags", [])):
        cell.metadata.update(cellView="form", jupyter={"source_hidden": True})
    kept = [
        output
        for output in cell.outputs
        if output.output_type != "stream" or (output.name == "stdout" and output.text.strip())
    ]
    cell.outputs = [output for output in kept if "scrapbook" not in output.get("metadata", {})]
    for output in cell.outputs:
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())

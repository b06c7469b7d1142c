"""What every notebook and the files around it must look like, without running anything."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("[0-9][0-9]_*.ipynb"))
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
COMMANDS = [
    "pip install -r requirements.txt && ruff check . && ruff format --check . && pyright",
    "pip install -r requirements.txt && jupyter-book build . -W -n --keep-going",
    "pip install -r requirements.txt && pytest",
]

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path):
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]


def tags(cell):
    return cell["metadata"].get("tags", [])


def source(cell):
    return "".join(cell["source"])


def parameters(path):
    """Defaults of the parameters cell, which must be literals."""
    (cell,) = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
    values = {}
    for node in ast.parse(source(cell)).body:
        (target,) = node.targets if isinstance(node, ast.Assign) else [node.target]
        values[target.id] = ast.literal_eval(node.value)
    return values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped(path):
    notebook = load(path)
    assert "widgets" not in notebook["metadata"] and "papermill" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in code_cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        assert not {"execution", "papermill"} & set(cell["metadata"])
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


@chapters
def test_chapter_opens_with_title_setup_parameters_check(path):
    first = load(path)["cells"][0]
    assert first["cell_type"] == "markdown" and source(first).startswith(f"# {int(path.stem[:2])}. ")
    setup, defaults, check = code_cells(path)[:3]
    assert "google.colab" in source(setup) and '%pip install -q "fedlib[book] @ git+' in source(setup)
    assert source(setup).rstrip().endswith("begin(globals())")
    assert {"hide-cell", "hide-input"} & set(tags(setup))
    assert set(tags(defaults)) - {"hide-input"} == {"parameters"}
    assert re.search(r"check_parameters\(\s*globals\(\)", source(check))
    assert [cell for cell in code_cells(path) if "parameters" in tags(cell)] == [defaults]


@chapters
def test_presets_name_declared_parameters_only(path):
    defaults = parameters(path)
    assert defaults["preset"] == "quick"
    files = sorted((BOOK / "params").glob(f"{path.stem}.*.yaml"))
    assert BOOK / "params" / f"{path.stem}.quick.yaml" in files
    for file in files:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert set(values) <= set(defaults), file.name
        assert values["preset"] == file.name.split(".")[1]
        if values["preset"] == "quick":
            assert values == {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()}


@chapters
def test_checkpoints_are_named_by_what_decides_a_result_and_decide_nothing_themselves(path):
    code = "\n".join(map(source, code_cells(path)))
    assert len(re.findall(r"fl\.chapter\.checkpoint_names\(\s*globals\(\)", code)) == 1
    assert set(re.findall(r"\bcheckpoint=(\w+)", code)) <= {"checkpoint", "None"}
    # no cell asks whether there are any: a claim is judged with them and without
    assert not re.search(r"(if|not|and|or) checkpoints\b", code)


def test_preset_and_result_files_belong_to_a_chapter():
    stems = {path.stem for path in CHAPTERS}
    for file in [*(BOOK / "params").glob("*.yaml"), *(BOOK / "results").rglob("*.json")]:
        assert file.name.split(".")[0] in stems, file.name


@chapters
def test_claims_have_their_target(path):
    text = "\n".join(source(cell) for cell in load(path)["cells"])
    for file in (BOOK / "results").glob(f"{path.stem}.*.json"):
        for claim in json.loads(file.read_text(encoding="utf-8"))["claims"]:
            assert f"(claim-{claim['id']})=" in text, f"{file.name}: no target for {claim['id']}"


def test_every_chapter_is_in_the_table_of_contents():
    listed = re.findall(r"file: (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert {f"book/{path.stem}" for path in CHAPTERS} <= set(listed)
    assert all(list(ROOT.glob(f"{entry}.*")) for entry in listed)


def test_the_glossary_is_in_order():
    text = (BOOK / "glossary.md").read_text(encoding="utf-8").split(":::{glossary}\n")[1]
    terms = re.findall(r"(?m)^(?! |:::)(.+)$", text)
    assert len(terms) > 50 and terms == sorted(terms, key=str.lower)


def test_every_module_has_a_page_and_a_line_on_the_one_before():
    files = (ROOT / "fedlib").rglob("*.py")
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem != "__init__"}
    pages = {f"fedlib.{page.stem}": page.read_text(encoding="utf-8") for page in (BOOK / "api").glob("*.md")}
    assert {*pages} == modules
    for name, text in pages.items():
        assert re.findall(r"automodule:: ([\w.]+)", text) == [name]
    summary = (BOOK / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"\[`([\w.]+)`\]\(api/", summary) == re.findall(r"`(fedlib\.[\w.]+)`\]", summary)
    assert {*re.findall(r"\[`([\w.]+)`\]\(api/", summary)} == modules


def test_the_quick_start_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (BOOK / "api.md").read_text(encoding="utf-8"), re.S)
    exec(code.replace("rounds=20", "rounds=2"), {"__name__": "quick_start"})
    assert "layer norm" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_and_ci_give_the_same_commands(command):
    assert f"```bash\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"run '{command}'" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("address", ROOT / "book" / "address.py")
address = importlib.util.module_from_spec(spec)
spec.loader.exec_module(address)

REPEATED = """
[badge](https://colab.research.google.com/github/old/book/blob/master/book/02_x.ipynb)
pip install "git+https://github.com/old/book"
pip install "fedlib[book] @ git+https://github.com/old/book"
git clone https://github.com/old/book
[pages](https://old.github.io/book/book/intro.html)
the authors' code: https://github.com/huawei-noah/Federated-Learning
"""


@pytest.fixture
def copy(tmp_path):
    for path in [ROOT / "_config.yml", *address.files()]:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def test_all_places_repeat_the_address_of_the_config():
    assert address.differing() == {}


def test_every_notebook_repeats_the_address():
    owner, repo, _ = address.address()
    for path in sorted((ROOT / "book").glob("[0-9][0-9]_*.ipynb")):
        text = path.read_text(encoding="utf-8")
        assert f"git+https://github.com/{owner}/{repo}" in text, path.name
        assert f"colab.research.google.com/github/{owner}/{repo}/blob/colab/book/{path.name}" in text, path.name


def test_a_doctored_copy_is_found_and_mended(copy, capsys):
    assert address.main(["--check"], copy) == 0
    (copy / "book" / "intro.md").write_text(REPEATED, encoding="utf-8")
    assert address.main(["--check"], copy) == 1
    assert "book/intro.md: has another address" in capsys.readouterr().out
    assert (copy / "book" / "intro.md").read_text(encoding="utf-8") == REPEATED
    assert address.main([], copy) == 0
    text = (copy / "book" / "intro.md").read_text(encoding="utf-8")
    assert "old" not in text and "master" not in text and "huawei-noah/Federated-Learning" in text
    assert address.main(["--check"], copy) == 0


def test_a_new_address_reaches_every_place(copy):
    config = copy / "_config.yml"
    config.write_text(
        re.sub("url: https://github.com/.*", "url: https://github.com/someone/else", config.read_text(encoding="utf-8"))
    )
    before = {path: path.read_text(encoding="utf-8") for path in address.files(copy)}
    old = "/".join(address.address(ROOT)[:2])
    assert address.main([], copy) == 0
    for path, text in before.items():
        assert f"github.com/{old}" not in path.read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8").count("someone/else") == text.count(old)


def configure(copy, url, branch="main"):
    config = copy / "_config.yml"
    text = re.sub("url: https://github.com/.*", f"url: {url}", config.read_text(encoding="utf-8"))
    config.write_text(re.sub("branch: .*", f"branch: {branch}", text), encoding="utf-8")
    return address.main([], copy)


def test_the_workflow_builds_and_publishes_the_branch_of_the_config(copy):
    assert configure(copy, "https://github.com/someone/else", "trunk") == 0
    text = (copy / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow[True]["push"]["branches"] == ["trunk"]  # YAML reads on as true
    assert text.count("github.ref == 'refs/heads/trunk'") == 3 and "heads/main" not in text
    assert configure(copy, "https://github.com/someone/else", "main") == 0
    assert "trunk" not in (copy / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("before", ["someone/else", "someone/book", "someone/someone.github.io"])
def test_a_repository_of_its_owners_pages_is_published_at_the_root(copy, before):
    readme = copy / "README.md"
    assert configure(copy, f"https://github.com/{before}") == 0
    assert configure(copy, "https://github.com/Other/other.github.io") == 0
    assert "<https://Other.github.io/book/intro.html>" in readme.read_text(encoding="utf-8")
    assert configure(copy, f"https://github.com/{before}") == 0
    path = "" if before.endswith("github.io") else before.split("/")[1] + "/"
    assert f"<https://someone.github.io/{path}book/intro.html>" in readme.read_text(encoding="utf-8")


def test_the_benchmarks_on_colab_are_read_where_they_were_cloned(copy):
    assert configure(copy, "https://github.com/someone/else") == 0
    text = (copy / "book" / "benchmarks.ipynb").read_text(encoding="utf-8")
    (folder,) = re.findall(r"git clone -q --depth 1 https://github.com/someone/else (\w+)", text)
    assert f'Path(\\"{folder}/benchmarks/results\\")' in text


@pytest.mark.parametrize("url", ["https://github.com/owner/repo.git", "https://gitlab.com/owner/repo", "owner/repo"])
def test_a_malformed_address_is_refused(copy, url):
    config = copy / "_config.yml"
    config.write_text(re.sub("url: https://github.com/.*", f"url: {url}", config.read_text(encoding="utf-8")))
    with pytest.raises(ValueError, match="repository: url: must be https://github.com/OWNER/REPOSITORY"):
        address.main(["--check"], copy)

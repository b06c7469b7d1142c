"""Repeat the public address of _config.yml wherever it has to stand: badges, Colab cells, package metadata, workflow.

python book/address.py            rewrite
python book/address.py --check    only say where it differs, and exit with 1
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
_PART = r"[\w.-]+"
_REPO = rf"{_PART}/(?:(?!\.git\b)[\w.-])+"


def address(root: Path = ROOT) -> tuple[str, str, str]:
    """Owner, repository and branch from ``_config.yml``.

    Raises:
        ValueError: the url is not ``https://github.com/OWNER/REPOSITORY``.
    """
    repository = yaml.safe_load(
        (root / "_config.yml").read_text(encoding="utf-8")
    )["repository"]
    match = re.fullmatch(
        rf"https://github\.com/({_PART})/({_PART}?)/?",
        repository["url"],
    )
    if not match or match[2].endswith(".git"):
        raise ValueError(
            f"repository: url: must be https://github.com/OWNER/REPOSITORY, got {repository['url']!r}"
        )
    return match[1], match[2], repository["branch"]


def rules(
    owner: str, repo: str, branch: str
) -> list[tuple[re.Pattern[str], str]]:
    """Pairs of a pattern that only ever means our own address, and what must stand there."""
    ours = f"{owner}/{repo}"
    # a repository of the name OWNER.github.io is published at its owner's root
    site = (
        f"{owner}.github.io"
        if repo.lower() == f"{owner}.github.io".lower()
        else f"{owner}.github.io/{repo}"
    )
    return [
        (re.compile(pattern), text)
        for pattern, text in [
            # Colab badges; the branch holds the copies that the build makes, whatever the book's own branch is called
            (
                rf"https://colab\.research\.google\.com/github/{_REPO}/blob/[^\s\"\\)]+?/book/",
                f"https://colab.research.google.com/github/{ours}/blob/colab/book/",
            ),
            # installing fedlib, with the book's extra or without
            (
                rf"git\+https://github\.com/{_REPO}",
                f"git+https://github.com/{ours}",
            ),
            # cloning, the badge of the workflow
            (
                rf"(git clone[^\n]*? )https://github\.com/{_REPO}",
                rf"\g<1>https://github.com/{ours}",
            ),
            (
                rf"https://github\.com/{_REPO}/actions/workflows/book\.yml",
                f"https://github.com/{ours}/actions/workflows/book.yml",
            ),
            # the published pages
            (
                rf"https://{_PART}\.github\.io/(?:{_PART}/)?book/",
                f"https://{site}/book/",
            ),
            # the workflow: which branch is built and published
            (r"(?m)^(    branches: )\[[^\]]*\]", rf"\g<1>[{branch}]"),
            (
                r"(github\.ref == )'refs/heads/[^']+'",
                rf"\g<1>'refs/heads/{branch}'",
            ),
            # pyproject.toml, CITATION.cff
            (
                rf'(?m)^(Repository = |repository-code: )"https://github\.com/{_REPO}"',
                rf'\g<1>"https://github.com/{ours}"',
            ),
        ]
    ]


def files(root: Path = ROOT) -> list[Path]:
    """Everything that may repeat the address."""
    named = [
        root / name
        for name in (
            "README.md",
            "pyproject.toml",
            "CITATION.cff",
            ".github/workflows/book.yml",
        )
    ]
    return [
        *named,
        *sorted((root / "book").glob("*.ipynb")),
        *sorted((root / "book").glob("*.md")),
    ]


def differing(root: Path = ROOT) -> dict[Path, str]:
    """Files that repeat another address, each with the text it should have."""
    wanted = rules(*address(root))
    found = {}
    for path in files(root):
        text = new = path.read_text(encoding="utf-8")
        for pattern, replacement in wanted:
            new = pattern.sub(replacement, new)
        if new != text:
            found[path] = new
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if any file differs",
    )
    check = parser.parse_args(arguments).check
    found = differing(root)
    for path, text in found.items():
        print(
            f"{path.relative_to(root)}: {'has another address' if check else 'rewritten'}"
        )
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""Texts as data sets: windows of characters, each with the character that follows as its label.

Who says something is the domain of its examples, so that `partition.by_domain` makes each speaker a client.
"""

import html.parser
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedlib import checks
from fedlib.data import DOMAIN_KEYS, KEYS, Data, register
from fedlib.files import have, replacing

EXCERPT = Path(__file__).with_name("shakespeare_excerpt.txt")  # of The Winter's Tale and Measure for Measure
TINY = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "6fb458f1232090904fb40fe944165e91",
)
PLAYS_URL = "https://shakespeare.mit.edu/{}/full.html"
PLAYS = tuple(
    """
    1henryiv 1henryvi 2henryiv 2henryvi 3henryvi allswell asyoulikeit cleopatra comedy_errors coriolanus cymbeline
    hamlet henryv henryviii john julius_caesar lear lll macbeth measure merchant merry_wives midsummer much_ado othello
    pericles richardii richardiii romeo_juliet taming_shrew tempest timon titus troilus_cressida twelfth_night
    two_gentlemen winters_tale""".split()
)


def from_texts(
    name: str,
    texts: Mapping[str, str],
    length: int = 80,
    stride: int = 1,
    train: int | None = None,
    test: int | None = None,
    vocabulary: Sequence[str] | None = None,
) -> Data:
    """Texts as next-character prediction: x is a window of `length` characters, y the character after it.

    The first 80 % of each text are for training, the rest for the test, so that no character is in both.

    Args:
        name: of the data set.
        texts: speaker -> what they say.
        length: characters of a window.
        stride: characters between the starts of two windows.
        train, test: windows kept of each speaker, the first ones; all of them when left out.
        vocabulary: the characters in order of their numbers; by default all that occur, sorted.

    Raises:
        ValueError: a text that is too short for that or has a character outside the vocabulary; it names the speaker.
    """
    checks.whole(length=length, stride=stride)
    checks.whole(**{key: count for key, count in (("train", train), ("test", test)) if count is not None})
    if not texts:
        raise ValueError("texts must hold what at least one speaker says, got none")
    vocabulary = tuple(sorted(set().union(*texts.values())) if vocabulary is None else vocabulary)
    if len(vocabulary) > 256 or len(set(vocabulary)) < len(vocabulary):
        raise ValueError(f"vocabulary must hold at most 256 characters, none twice; got {len(vocabulary)}")
    number = {character: i for i, character in enumerate(vocabulary)}
    cut: dict[str, list[np.ndarray]] = {key: [] for key in KEYS + DOMAIN_KEYS}
    for d, (speaker, text) in enumerate(texts.items()):
        if unknown := set(text) - set(number):
            raise ValueError(f"{name}: the text of {speaker!r} has {sorted(unknown)[0]!r}, not in the vocabulary")
        ids, end = np.array([number[character] for character in text], dtype=np.uint8), int(0.8 * len(text))
        for split, part, count in (("train", ids[:end], train), ("test", ids[end:], test)):
            found = np.arange(0, len(part) - length, stride)[:count]
            if len(found) < (count or 1):
                raise ValueError(
                    f"{name}: the text of {speaker!r} ({len(text)} characters) is too short for "
                    f"{count or 1} {split} windows of {length} characters, it has {len(found)}"
                )
            cut[f"x_{split}"].append(np.lib.stride_tricks.sliding_window_view(part, length)[found])
            cut[f"y_{split}"].append(part[found + length].astype(np.int64))
            cut[f"domain_{split}"].append(np.full(len(found), d))
    tensors = {key: torch.from_numpy(np.concatenate(pieces)) for key, pieces in cut.items()}
    return Data(name=name, classes=vocabulary, mean=(), std=(), domains=tuple(texts), **tensors)


def _by_role(script: str) -> dict[str, str]:
    """role -> all that it says, from a script of speeches: the role and a colon, then its lines, then an empty line."""
    spoken: dict[str, list[str]] = {}
    for block in script.split("\n\n"):
        role, colon, lines = block.strip("\n").partition(":\n")
        if colon and "\n" not in role:
            spoken.setdefault(role, []).append(lines)
    return {role: "\n".join(speeches) for role, speeches in spoken.items()}


@register("shakespeare_excerpt")
def _excerpt(
    root: Path,
    download: bool,
    *,
    length: int = 32,
    stride: int = 1,
    clients: int = 10,
    train: int | None = None,
    test: int | None = None,
) -> Data:
    """The `clients` roles that say most in 80 kB of Shakespeare, part of the package: nothing to download."""
    texts = _by_role(EXCERPT.read_text(encoding="utf-8"))
    return from_texts("shakespeare_excerpt", _longest(texts, clients), length, stride, train, test)


def _longest(texts: Mapping[str, str], count: int) -> dict[str, str]:
    return dict(sorted(texts.items(), key=lambda item: (-len(item[1]), item[0]))[:count])


def _fetch(
    name: str,
    url: str,
    path: Path,
    download: bool,
    md5: str | None = None,
    check: Callable[[Path], object] = lambda path: None,
) -> None:
    """Have a file where it belongs, fetched if need be."""
    try:
        have(path, [url], md5, download, check)
    except OSError as error:
        raise (OSError if download else FileNotFoundError)(
            f"data set {name!r} cannot be had ({error}). To place it by hand, save {url} as "
            f"{path.absolute()}. For another folder give root=... or set FEDLIB_DATA"
        ) from error


@register("tiny_shakespeare")
def _tiny_shakespeare(root: Path, download: bool, *, length: int = 80, stride: int = 8) -> Data:
    """A. Karpathy's 1,115,394 characters of Shakespeare as one text of one domain, speakers' names included."""
    path = root / "shakespeare" / "tinyshakespeare.txt"
    _fetch("tiny_shakespeare", TINY[0], path, download, TINY[1])
    return from_texts("tiny_shakespeare", {"Shakespeare": path.read_text(encoding="utf-8")}, length, stride)


class _Speeches(html.parser.HTMLParser):
    """The speeches of a play as the MIT edition marks them: <a name=speech1><b>ROLE</b></a>, <a name=1.1.1>line</a>."""

    def __init__(self):
        super().__init__()
        self.speeches: list[list[str]] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        name = dict(attrs).get("name") or ""
        if tag == "a" and name.startswith("speech"):
            self.inside = "role"
            self.speeches.append(["", ""])
        elif tag == "a" and name[:1].isdigit() and self.speeches:
            self.inside = "line"
            self.speeches[-1][1] += "\n" if self.speeches[-1][1] else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == "a" else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.speeches[-1][self.inside == "line"] += data


def _speeches(page: Path) -> list[list[str]]:
    """[role, text] of each speech of a page.

    Raises:
        ValueError: the page is not whole, or holds no speech, as one that asks to log in.
    """
    text = page.read_text(encoding="utf-8", errors="replace")
    if not text.rstrip().lower().endswith("</html>"):  # whoever cut it may have told the length of what is left
        raise ValueError("is not a whole page: it does not end with </html>")
    parser = _Speeches()
    parser.feed(text)
    if not (speeches := [speech for speech in parser.speeches if speech[1]]):
        raise ValueError("holds no speech of a play")
    return speeches


def _plays(root: Path, download: bool) -> dict[str, dict]:
    """play -> {"title", "speeches": [[role, text], ...]}: one file, made from the MIT edition's pages if need be."""
    path = root / "shakespeare" / "plays_by_speech.json"
    if not path.is_file():
        plays = {}
        for play in PLAYS:
            page = root / "shakespeare" / "mit" / f"{play}.html"
            _fetch("shakespeare_roles", PLAYS_URL.format(play), page, download, check=_speeches)
            plays[play] = {"title": play, "speeches": _speeches(page)}
        with replacing(path) as part:
            part.write_text(json.dumps(plays), encoding="utf-8")
    try:
        plays = json.loads(path.read_text(encoding="utf-8"))
        [(str(role), str(text)) for play in plays.values() for role, text in play["speeches"]]
        if silent := [name for name, play in plays.items() if not play["speeches"]]:
            raise ValueError(f"no speech of {silent[0]}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and load again") from error
    return plays


@register("shakespeare_roles")
def _shakespeare_roles(
    root: Path,
    download: bool,
    *,
    length: int = 80,
    stride: int = 1,
    clients: int = 100,
    train: int = 2000,
    test: int = 400,
    seed: int = 0,
) -> Data:
    """Shakespeare's plays, each (play, role) a domain: as in FedNAR (arXiv 2310.03163) after LEAF (arXiv 1812.01097).

    `clients` roles are drawn at random among those with enough text, and `train` and `test` windows kept of each. The
    texts are those of the MIT edition, LEAF's those of Project Gutenberg: the same plays, split alike, not the same
    characters.
    """
    spoken: dict[str, list[str]] = {}
    for name, play in _plays(root, download).items():
        for role, text in play["speeches"]:
            spoken.setdefault(f"{name}: {role}", []).append(text)
    texts = {role: "\n".join(speeches) for role, speeches in spoken.items()}
    whole = tuple(sorted(set().union(*texts.values())))
    last = length + 1  # characters of the first window with its label; each further one adds stride

    def enough(text: str) -> bool:
        end = int(0.8 * len(text))
        return end >= last + stride * (train - 1) and len(text) - end >= last + stride * (test - 1)

    able = sorted(role for role, text in texts.items() if enough(text))
    if clients > len(able):
        raise ValueError(
            f"clients must be at most {len(able)}, the roles with {train} training and {test} test "
            f"windows of {length} characters; got {clients}"
        )
    chosen = np.random.default_rng(seed).permutation(len(able))[:clients]
    return from_texts(
        "shakespeare_roles",
        {able[i]: texts[able[i]] for i in sorted(chosen)},
        length,
        stride,
        train,
        test,
        vocabulary=whole,
    )

import hashlib
import json
from urllib.error import URLError

import pytest
import torch

from fedlib import data, files, texts

TEXTS = {"Ann": "abcdefghij" * 4, "Bob": "jihgfedcba" * 5}


def test_windows_of_a_text_are_followed_by_their_label():
    d = texts.from_texts("letters", TEXTS, length=6)
    assert d.is_text and d.shape == (6,) and d.classes == tuple("abcdefghij") and d.domains == ("Ann", "Bob")
    assert d.x_train.dtype == torch.uint8 and d.y_train.dtype == torch.int64
    for split, first, last in (("train", 0.0, 0.8), ("test", 0.8, 1.0)):
        x, y, domain = (getattr(d, f"{name}_{split}") for name in ("x", "y", "domain"))
        for k, text in enumerate(TEXTS.values()):
            own = text[int(first * len(text)) : int(last * len(text))]
            windows = [own[i : i + 7] for i in range(len(own) - 6)]
            pairs = zip(x[domain == k], y[domain == k], strict=True)
            assert [d.read(one) + d.classes[label] for one, label in pairs] == windows
    assert repr(d) == (
        "Data('letters': 60 training and 6 test windows of 6 characters on cpu; 10 different characters, 2 domains)"
    )
    assert d.to("meta").x_test.device.type == "meta" and not data.load("digits").is_text


def test_training_and_test_share_no_character():
    """The text counts upwards, so that a character names its place."""
    text = "".join(map(chr, range(100, 340)))
    d = texts.from_texts("counting", {"all": text[:240]}, length=10, stride=3)
    assert int(d.x_train.max()) <= int(d.y_train.max()) < int(d.x_test.min())
    assert torch.equal(d.x_train[1:, 0] - d.x_train[:-1, 0], torch.full((len(d.x_train) - 1,), 3, dtype=torch.uint8))


def test_the_first_windows_are_kept():
    few, all_ = (texts.from_texts("letters", TEXTS, length=6, **some) for some in ({"train": 5, "test": 1}, {}))
    for k in (0, 1):
        assert torch.equal(few.x_train[few.domain_train == k], all_.x_train[all_.domain_train == k][:5])
    assert len(few.x_test) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"train": 27}, r"'Ann' \(40 characters\) is too short for 27 train windows of 6 characters, it has 26"),
        ({"length": 9}, "'Ann' .* is too short for 1 test windows of 9 characters, it has 0"),
        ({"vocabulary": "abc"}, "the text of 'Ann' has 'd', not in the vocabulary"),
        ({"vocabulary": "abca"}, "none twice"),
        ({"stride": True}, "stride must be a whole number"),
    ],
)
def test_from_texts_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        texts.from_texts("letters", TEXTS, **{"length": 6, **options})
    with pytest.raises(ValueError, match="at least one speaker"):
        texts.from_texts("letters", {})


def test_prepare_of_a_text_is_its_numbers():
    x = torch.randint(0, 256, (4, 7), dtype=torch.uint8)
    assert torch.equal(data.prepare(x), x.to(torch.int64)) and data.prepare(x).dtype == torch.int64


def test_the_excerpt_needs_no_folder(tmp_path):
    d = data.load("shakespeare_excerpt", root=tmp_path, download=False, clients=7, length=20)
    assert len(d.domains) == 7 and d.domains[0] == "AUTOLYCUS" and d.shape == (20,) and not any(tmp_path.iterdir())
    assert int(torch.bincount(d.domain_test).min()) > 500
    everything = texts.EXCERPT.read_text(encoding="utf-8")
    assert d.read(d.x_train[0]) in everything and "AUTOLYCUS" not in d.read(d.x_train.flatten()[:5000])


PAGE = """<H3>ACT I</h3><h3>SCENE I. A hall.</h3><p><blockquote><i>Enter ANN and <b>BOB</b></i></blockquote>
<A NAME=speech1><b>ANN</b></a><blockquote><A NAME=1.1.1>{0} &amp; on,</A><br>
<A NAME=1.1.2>{0}</A><br><p><i>Exit</i></p></blockquote>
<A NAME=speech2><b>BOB</b></a><blockquote><A NAME=1.1.3>{0}!</A><br></blockquote><a href="/x">next</a></body></html>
"""


def test_roles_are_read_from_the_pages_of_the_mit_edition(tmp_path, monkeypatch):
    fetched = []

    def download(url, path, *_):
        fetched.append(url)
        path.write_text(PAGE.format("to be or not to be " * 5), encoding="utf-8")

    monkeypatch.setattr(files, "_download", download)
    monkeypatch.setattr(texts, "PLAYS", ("hamlet", "lear"))
    options = {"length": 10, "clients": 3, "train": 60, "test": 5}
    d = data.load("shakespeare_roles", root=tmp_path, **options)
    assert fetched == [f"https://shakespeare.mit.edu/{play}/full.html" for play in ("hamlet", "lear")]
    assert len(d.domains) == 3 and set(d.domains) <= {f"{p}: {r}" for p in ("hamlet", "lear") for r in ("ANN", "BOB")}
    assert torch.bincount(d.domain_train).tolist() == [60] * 3
    plays = json.loads((tmp_path / "shakespeare" / "plays_by_speech.json").read_text(encoding="utf-8"))
    line = "to be or not to be " * 5
    assert plays["lear"]["speeches"] == [["ANN", f"{line} & on,\n{line}"], ["BOB", f"{line}!"]]
    again = data.load("shakespeare_roles", root=tmp_path, download=False, **options)
    assert len(fetched) == 2 and torch.equal(again.x_train, d.x_train)
    with pytest.raises(ValueError, match="clients must be at most 4, the roles with 60 training and 5 test windows"):
        data.load("shakespeare_roles", root=tmp_path, **{**options, "clients": 5})
    for damaged in ("[1, 2", '{"lear": {"speeches": []}}'):  # the latter is what a page to log in once made of a play
        (tmp_path / "shakespeare" / "plays_by_speech.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match="plays_by_speech.json is damaged .* delete it and load again"):
            data.load("shakespeare_roles", root=tmp_path, **options)


def test_a_missing_text_says_how_to_place_it(tmp_path, monkeypatch):
    for name, file in (("tiny_shakespeare", "tinyshakespeare.txt"), ("shakespeare_roles", "1henryiv.html")):
        with pytest.raises(FileNotFoundError, match=f"data set '{name}' cannot be had .* by hand, save https.*{file}"):
            data.load(name, root=tmp_path, download=False)

    def cut_short(url, path, *_):
        path.write_text("half a pl", encoding="utf-8")
        raise URLError("no network")

    monkeypatch.setattr(files, "_download", cut_short)
    for name in ("tiny_shakespeare", "shakespeare_roles"):
        with pytest.raises(OSError, match="no network.*set FEDLIB_DATA"):
            data.load(name, root=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # the next try would take half a file for it


def test_tiny_shakespeare_from_its_file(tmp_path, monkeypatch):
    path = tmp_path / "shakespeare" / "tinyshakespeare.txt"
    path.parent.mkdir()
    path.write_text("ANN:\nTo be.\n\n" * 50, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="its md5 is not 6fb458f1232090904fb40fe944165e91"):
        data.load("tiny_shakespeare", root=tmp_path, download=False)
    monkeypatch.setattr(texts, "TINY", (texts.TINY[0], hashlib.md5(path.read_bytes()).hexdigest()))
    d = data.load("tiny_shakespeare", root=tmp_path, download=False, length=12, stride=1)
    assert d.domains == ("Shakespeare",) and d.read(d.x_train[0]) == "ANN:\nTo be.\n"

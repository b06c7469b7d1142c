"""What is fetched, from a server here that breaks off, lies or asks to log in; `replacing` is in test_checks.py."""

import bz2
import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
import torchvision.datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlib import data, files, texts

LOGIN = b"<html>Please log in</html>"


class Line(http.server.BaseHTTPRequestHandler):
    """Serves `server.bodies`, as `server.mode` has it."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        body, mode = self.server.bodies[self.path], self.server.mode
        body = {"login": LOGIN, "empty": b""}.get(mode, body)
        self.protocol_version = "HTTP/1.1" if mode == "chunks" else "HTTP/1.0"
        self.close_connection = True
        self.send_response(200)
        if mode == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        elif mode != "no length":
            self.send_header("Content-Length", str(len(body) // (3 if mode == "false length" else 1)))
        self.end_headers()
        cut = body[: len(body) // 3]
        sent = {"fine": body, "login": body, "empty": body, "chunks": b"%x\r\n" % len(body) + cut}.get(mode, cut)
        self.wfile.write(sent)


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Line)
    server.bodies, server.mode = {}, "fine"
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def md5(content):
    return hashlib.md5(content).hexdigest()


def on_disk(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(min_size=3, max_size=5000),
    mode=st.sampled_from(["fine", "cut", "chunks", "no length", "false length", "login", "empty"]),
    known=st.booleans(),
    old=st.sampled_from([None, b"what was there before"]),
)
def test_a_file_comes_whole_or_not_at_all(server, tmp_path_factory, body, mode, known, old):
    path = tmp_path_factory.mktemp("have") / "file.bin"
    if old is not None and known:
        path.write_bytes(old)
    server.bodies, server.mode = {"/file": body + b"END"}, mode

    def check(path):
        if not path.read_bytes().endswith(b"END"):
            raise ValueError("has no end")

    wanted = md5(body + b"END") if known else None
    if mode == "fine":
        files.have(path, [f"{server.url}/file"], wanted, check=check)
        assert path.read_bytes() == body + b"END" and on_disk(path.parent) == ["file.bin"]
        server.mode = "empty"
        files.have(path, [f"{server.url}/file"], wanted, check=check)  # what is right is not fetched again
    else:
        with pytest.raises(OSError, match=r"file.bin did not come: http://127.0.0.1:\d+/file: "):
            files.have(path, [f"{server.url}/file"], wanted, check=check)
        assert (path.read_bytes() if path.exists() else None) == (old if known else None)
        assert len(on_disk(path.parent)) == path.exists()


def test_the_next_address_is_tried(server, tmp_path):
    server.bodies, server.mode = {"/file": b"whole"}, "fine"
    files.have(tmp_path / "file", ["http://127.0.0.1:1/file", f"{server.url}/file"])
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_what_is_there_and_not_right_is_named(tmp_path):
    (tmp_path / "file").write_bytes(LOGIN)
    with pytest.raises(
        FileNotFoundError, match="file is not the file .*26 bytes of a web page, perhaps to log in, .*md5"
    ):
        files.have(tmp_path / "file", [], md5(b"whole"), download=False)
    with pytest.raises(FileNotFoundError, match="other is missing"):
        files.have(tmp_path / "other", [], download=False)


def play(name):
    lines = [f"<A NAME=speech{k}><b>R{k % 4}</b></a><A NAME=1.1.{k}>{name} says line {k}</A><br>" for k in range(200)]
    return ("<html>" + "\n".join(lines) + "</html>\n").encode()


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def hosted(server, monkeypatch):
    """Small stand-ins of what fedlib fetches, at the addresses that torchvision and fedlib ask."""
    rng, y = np.random.default_rng(0), np.arange(20, dtype=np.uint8) % 10
    pictures = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    packed = {f"{name}.gz": gzip.compress(idx(pictures if "images" in name else y)) for name in data.IDX_FILES}
    line = "5 " + " ".join(f"{k}:0.5" for k in range(1, 257)) + "\n"
    usps = {name: bz2.compress(line.encode() * 20) for name in ("usps.bz2", "usps.t.bz2")}
    records = np.concatenate([y[:, None], rng.integers(0, 256, (20, 3072), dtype=np.uint8)], 1).tobytes()
    members = {f"c/{name}": records for name in ("a.bin", "t.bin")}
    cifar = {"c.tar.gz": tar(members)}
    plays = {f"{name}/full.html": play(name) for name in ("hamlet", "lear")}
    server.bodies = {f"/{name}": body for name, body in (packed | usps | cifar | plays).items()}
    server.mode = "fine"
    mnist, source = torchvision.datasets.MNIST, torchvision.datasets.USPS
    monkeypatch.setattr(mnist, "mirrors", [f"{server.url}/"])
    monkeypatch.setattr(mnist, "resources", [(name, md5(body)) for name, body in packed.items()])
    split = zip(("train", "test"), usps.items(), strict=True)
    monkeypatch.setattr(source, "split_list", {s: (f"{server.url}/{n}", n, md5(body)) for s, (n, body) in split})
    read = {"url": f"{server.url}/c.tar.gz", "md5": md5(cifar["c.tar.gz"]), "train": ["c/a.bin"], "test": ["c/t.bin"]}
    public = data._Public(lambda *a: data._cifar_arrays(*a, label_bytes=1, **read), server.url, (), data.CIFAR10)
    monkeypatch.setitem(data.PUBLIC, "cifar10", public)
    monkeypatch.setattr(texts, "PLAYS", ("hamlet", "lear"))
    monkeypatch.setattr(texts, "PLAYS_URL", f"{server.url}/{{}}/full.html")
    return server


SMALL = {"shakespeare_roles": {"length": 10, "clients": 3, "train": 50, "test": 10}}
HOSTED = ("mnist", "usps", "cifar10", "shakespeare_roles")


@pytest.mark.parametrize("mode", ["cut", "chunks", "no length", "false length", "login", "empty"])
@pytest.mark.parametrize("name", HOSTED)
def test_a_line_that_fails_leaves_nothing_and_the_next_load_is_whole(hosted, tmp_path, name, mode):
    hosted.mode = mode
    with pytest.raises(OSError, match=f"'{name}'.* did not come: http") as error:
        data.load(name, root=tmp_path, **SMALL.get(name, {}))
    assert str(tmp_path) in str(error.value) and "by hand" in str(error.value) and not on_disk(tmp_path)
    hosted.mode = "fine"
    first = data.load(name, root=tmp_path, **SMALL.get(name, {}))
    hosted.mode = mode
    again = data.load(name, root=tmp_path, download=False, **SMALL.get(name, {}))
    assert (first.x_train == again.x_train).all() and len(first.y_train) == (150 if name in SMALL else 20)


def test_files_of_an_earlier_line_that_failed_are_fetched_anew(hosted, tmp_path):
    """A page to log in among the plays, and an IDX file that was cut while it was unpacked."""
    for path, content in {
        "shakespeare/mit/lear.html": LOGIN,
        "shakespeare/mit/hamlet.html": play("hamlet")[:5000],
        f"MNIST/raw/{data.IDX_FILES[0]}": idx(np.zeros((20, 28, 28), np.uint8))[:500],
        "usps.bz2": b"half",
        "c.tar.gz": LOGIN,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for name in HOSTED:
        with pytest.raises(FileNotFoundError, match="lear.html|hamlet.html|train-images-idx3-ubyte|usps.bz2|c.tar.gz"):
            data.load(name, root=tmp_path, download=False, **SMALL.get(name, {}))
        assert len(data.load(name, root=tmp_path, **SMALL.get(name, {})).y_train) == (150 if name in SMALL else 20)


@pytest.mark.parametrize("change", [lambda whole: whole[:30000], lambda whole: LOGIN], ids=["cut", "page"])
def test_an_archive_that_is_damaged_in_spite_of_its_md5_is_named(hosted, tmp_path, monkeypatch, change):
    archive = change(hosted.bodies["/c.tar.gz"])
    (tmp_path / "c.tar.gz").write_bytes(archive)
    with pytest.raises(ValueError, match="c.tar.gz: "):
        data._cifar_arrays(tmp_path, False, "https://a/c.tar.gz", md5(archive), ["c/a.bin"], ["c/t.bin"], 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda whole: whole[:500], "has 500 bytes, and its first ones promise 15,696"),
        (lambda whole: whole + b"more", "has 15,700 bytes, and its first ones promise 15,696"),
        (lambda whole: whole[:6], "has 6 bytes"),
        (lambda whole: b"", "does not begin as an IDX file"),
        (lambda whole: LOGIN, "does not begin as an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(hosted, tmp_path, change, message):
    data.load("mnist", root=tmp_path)
    (tmp_path / "mnist.npz").unlink()
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileNotFoundError, match=f"train-images-idx3-ubyte is damaged: it {message}") as error:
        data.load("mnist", root=tmp_path, download=False)
    assert str(path) in str(error.value) and "by hand" in str(error.value)

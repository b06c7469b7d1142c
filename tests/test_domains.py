import hashlib
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlib import data, domains

quick = settings(max_examples=30, derandomize=True, deadline=None)


def arrays(n, m, shape, seed=0):
    """Random images of ten classes, as `data.from_arrays` takes them."""
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_train": np.arange(n) % 10,
        "x_test": rng.integers(0, 256, (m, *shape), dtype=np.uint8),
        "y_test": np.arange(m) % 10,
    }


def test_digit_domains_need_nothing_and_are_always_the_same(tmp_path):
    d, again = (data.load("digit_domains", root=tmp_path, download=False) for _ in range(2))
    assert d.shape == (3, 16, 16) and len(d.domains) == 5 and d.num_classes == 10 and not any(tmp_path.iterdir())
    for key in (*data.KEYS, *data.DOMAIN_KEYS):
        assert torch.equal(getattr(d, key), getattr(again, key))
    assert d.domain_train.bincount().tolist() == [299] * 5 and d.domain_test.bincount().tolist() == [150] * 5
    few = data.load("digit_domains", train=50)
    assert few.domain_train.bincount().tolist() == [50] * 5 and torch.equal(few.x_test, d.x_test)
    assert all(few.y_train[few.domain_train == k].bincount(minlength=10).min() >= 3 for k in range(5))
    other = data.load("digit_domains", seed=1)
    assert not torch.equal(d.x_train, other.x_train)


def test_digit_domains_look_different_and_hold_all_classes():
    d = data.load("digit_domains")
    look = []
    for k in range(5):
        x = d.x_train[d.domain_train == k].double() / 255
        colour = x.std(dim=1).mean().item()
        look.append((x.mean().item(), x.std(dim=(2, 3)).mean().item(), colour))
        assert (d.y_train[d.domain_train == k].bincount(minlength=10) >= 20).all()
        assert (d.y_test[d.domain_test == k].bincount(minlength=10) >= 10).all()
    plain, photo, street, printed, faint = look
    assert plain[2] == faint[2] == 0 < min(photo[2], street[2], printed[2])  # grey and coloured
    assert faint[1] < plain[1] / 2 and printed[0] > plain[0] + 0.2  # little contrast; dark on light
    means = sorted(one[0] for one in look)
    assert means[-1] - means[0] > 0.3


def test_no_handwritten_digit_is_in_two_domains_of_digit_domains():
    """Enlarged ink of the plain domain, found again in no other: its images are disjoint draws of scikit-learn's."""
    d, digits = data.load("digit_domains"), data.load("digits")
    small = torch.cat([digits.x_train, digits.x_test]).float()
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear").flatten(1)
    plain = torch.cat([d.x_train[d.domain_train == 0], d.x_test[d.domain_test == 0]])[:, 0].float().flatten(1)
    nearest = torch.cdist(plain, large).min(1)
    assert nearest.values.max() < 16 * 0.51 and len(set(nearest.indices.tolist())) == 449


def five(folder, *names, n=60, m=20, size=32):
    """Files of a small Digits-Five."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        np.savez(folder / f"{name}.npz", **arrays(n, m, (size, size, 3), seed=k))


def test_digits_five_from_files_names_what_is_missing(tmp_path):
    five(tmp_path / "digits_five", "mnist", "mnistm", "usps")
    with pytest.warns(UserWarning, match="svhn, syn not found, left out.*syn: no file .*syn.npz"):
        d = data.load("digits_five", root=tmp_path, download=False)
    assert d.domains == ("mnist", "usps", "mnistm") and d.shape == (3, 28, 28)
    assert d.domain_train.bincount().tolist() == [60] * 3 and d.domain_test.bincount().tolist() == [20] * 3
    again = data.load("digits_five", root=tmp_path, download=False, domains=("mnist", "usps"), train=30, size=32)
    assert again.shape == (3, 32, 32) and again.y_train.bincount().tolist() == [6] * 10
    theirs = {bytes(x) for x in np.load(tmp_path / "digits_five" / "mnist.npz")["x_train"]}
    ours = {bytes(x.permute(1, 2, 0).contiguous().numpy()) for x in again.x_train[again.domain_train == 0]}
    assert len(ours) == 30 and ours <= theirs  # images as they are where the size is theirs


def test_digits_five_takes_the_public_sets_in_fedbns_numbers(monkeypatch, tmp_path):
    """Grey 28x28 images become colour; 7,438 and 1,860 of them, classes in proportion."""
    five(tmp_path / "digits_five", "mnistm")
    public = data.from_arrays("mnist", **arrays(9000, 2000, (28, 28)))
    monkeypatch.setitem(data.LOADERS, "mnist", lambda root, download: public)
    d = data.load("digits_five", root=tmp_path, domains=("mnist", "mnistm"))
    mnist = d.domain_train == 0
    assert mnist.sum() == 7438 and (d.domain_test == 0).sum() == 1860
    held = d.y_train[mnist].bincount()
    assert held.max() - held.min() <= 1
    assert torch.equal(d.x_train[mnist][:, 0], d.x_train[mnist][:, 2])


def test_digits_five_refuses(tmp_path):
    five(tmp_path / "digits_five", "mnist")
    with pytest.raises(FileNotFoundError, match="svhn, usps, syn, mnistm not found"):
        data.load("digits_five", root=tmp_path, download=False)
    five(tmp_path / "digits_five", "syn")
    with pytest.raises(ValueError, match="domains must be some of mnist, svhn.*got mnits"):
        data.load("digits_five", root=tmp_path, domains=("mnits",))
    for train in (0, 61):
        with pytest.raises(ValueError, match=f"train must be between 1 and 60, .*'mnist', got {train}"):
            data.load("digits_five", root=tmp_path, domains=("mnist", "syn"), train=train)
    np.savez(tmp_path / "digits_five" / "syn.npz", x_train=np.zeros(3))
    with pytest.raises(ValueError, match="syn.npz: no array"):
        data.load("digits_five", root=tmp_path, domains=("mnist", "syn"))


def photographs(
    root,
    name="office_caltech_10",
    domains=("amazon", "caltech", "dslr", "webcam"),
    classes=("bike", "mug"),
    each=10,
    size=(40, 30),
):
    """A small folder tree of pictures; returns its path."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for domain in domains:
        for label in classes:
            (root / name / domain / label).mkdir(parents=True)
            for k in range(each):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / domain / label / f"{k}.jpg")
    return root / name


def office(root, **options):
    return data.load("office_caltech_10", root=root, download=False, **{"size": 16, **options})


def test_folders_are_decoded_once(tmp_path, monkeypatch):
    folder = photographs(tmp_path)
    first = office(tmp_path)
    assert first.shape == (3, 16, 16) and first.classes == ("bike", "mug")
    assert first.domains == ("amazon", "caltech", "dslr", "webcam")
    assert first.domain_train.bincount().tolist() == [16] * 4 and first.domain_test.bincount().tolist() == [4] * 4
    assert first.y_test[first.domain_test == 2].bincount().tolist() == [2, 2]
    monkeypatch.setattr(domains, "_decode", lambda *_: pytest.fail("decoded again"))
    second = office(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    third = office(tmp_path)  # the cache alone is enough
    for key in (*data.KEYS, *data.DOMAIN_KEYS):
        assert torch.equal(getattr(first, key), getattr(second, key))
        assert torch.equal(getattr(first, key), getattr(third, key))
    with np.load(tmp_path / "office_caltech_10.16px.npz", allow_pickle=False) as kept:
        assert kept["x"].dtype == np.uint8 and kept["x"].shape == (80, 16, 16, 3)


def test_folders_pixels_are_pillows(tmp_path):
    from PIL import Image

    folder = photographs(tmp_path)
    d = office(tmp_path)
    ours = {bytes(x.permute(1, 2, 0).contiguous().numpy()) for x in torch.cat([d.x_train, d.x_test])}
    theirs = {
        np.asarray(Image.open(p).resize((16, 16), Image.Resampling.BILINEAR)).tobytes() for p in folder.rglob("*.jpg")
    }
    assert ours == theirs and len(ours) == 80


def test_changed_folders_are_decoded_anew(tmp_path):
    folder = photographs(tmp_path)
    assert len(office(tmp_path).y_train) == 64
    (folder / "dslr" / "mug" / "3.jpg").unlink()
    assert len(office(tmp_path).y_train) + len(office(tmp_path).y_test) == 79


def test_some_domains_and_some_images(tmp_path):
    photographs(tmp_path)
    d = office(tmp_path, domains=("webcam", "amazon"), train=6)
    assert d.domains == ("webcam", "amazon") and d.domain_train.bincount().tolist() == [6, 6]
    assert d.y_train[d.domain_train == 0].bincount().tolist() == [3, 3]
    whole = office(tmp_path)
    assert torch.equal(d.x_test[d.domain_test == 0], whole.x_test[whole.domain_test == 3])  # the same split
    with pytest.raises(ValueError, match="domains must be some of amazon.*got webcams"):
        office(tmp_path, domains=("webcams",))
    for train in (0, 17):
        with pytest.raises(ValueError, match=f"train must be between 1 and 16, .*domain 'amazon', got {train}"):
            office(tmp_path, train=train)


def test_domainnet_has_the_ten_classes_of_the_papers(tmp_path):
    known = domains.DOMAIN_SETS["domainnet"]
    photographs(tmp_path, "domainnet", known.domains, (*known.classes, "aircraft_carrier"), each=5, size=(8, 8))
    d = data.load("domainnet", root=tmp_path, size=8)
    assert d.classes == known.classes and len(d.y_train) + len(d.y_test) == 6 * 10 * 5


def test_missing_folders_say_how_to_place_them(tmp_path):
    for name in domains.DOMAIN_SETS:
        with pytest.raises(FileNotFoundError, match=f"'{name}' is not here: put its images from http") as error:
            data.load(name, root=tmp_path)
        assert str(tmp_path / name) in str(error.value)


def test_a_missing_domain_is_refused(tmp_path):
    (photographs(tmp_path) / "dslr").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="no folder for domain 'dslr'.*there are amazon, caltech, webcam"):
        office(tmp_path)


def test_an_empty_domain_is_refused(tmp_path):
    photographs(tmp_path, domains=("amazon", "caltech", "webcam"))
    (tmp_path / "office_caltech_10" / "dslr").mkdir()
    with pytest.raises(ValueError, match="folder of domain 'dslr' is empty"):
        office(tmp_path)


def test_a_domain_with_other_classes_is_refused(tmp_path):
    folder = photographs(tmp_path)
    (folder / "caltech" / "mug").rename(folder / "caltech" / "cup")
    with pytest.raises(ValueError, match="domain 'amazon' has no folder for class.es. cup, which its siblings have"):
        office(tmp_path)


def test_an_empty_class_is_refused(tmp_path):
    folder = photographs(tmp_path)
    for file in (folder / "dslr" / "mug").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(ValueError, match="no images in .*dslr.mug .accepted: .jpg"):
        office(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not an image", "truncated"], ids=["empty", "text", "truncated"])
def test_damaged_images_are_named_and_left_out_up_to_a_share(tmp_path, damage):
    folder = photographs(tmp_path)
    bad = folder / "webcam" / "bike" / "4.jpg"
    bad.write_bytes(bad.read_bytes()[: len(bad.read_bytes()) // 2] if damage == "truncated" else damage)
    with pytest.raises(ValueError, match="1 of 80 images cannot be read .webcam.bike.4.jpg., more than .*0.01"):
        office(tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    for _ in range(2):  # also when they come from the cache
        with pytest.warns(UserWarning, match="1 images cannot be read and are left out: webcam.bike.4.jpg"):
            d = office(tmp_path, max_unreadable=0.02)
        assert len(d.y_train) + len(d.y_test) == 79
    with pytest.raises(ValueError, match="1 of 80 images cannot be read"):
        office(tmp_path)


def test_a_damaged_cache_of_folders_is_named(tmp_path):
    photographs(tmp_path)
    office(tmp_path)
    (tmp_path / "office_caltech_10.16px.npz").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="16px.npz: cannot be read .*delete it and load again"):
        office(tmp_path)


# --- What is in a file, whatever it is called ------------------------------------------------------------------------


def decoded(path):
    """(40, 50, 3) pixels of one file; None where it is counted as unreadable."""
    found = domains._decode([(path, 0, 0)], 64)
    assert len(found["x"]) + len(found["unreadable"]) == 1
    return found["x"][0] if len(found["x"]) else None


def ramp(levels=256, height=64, width=64):
    return (np.arange(height * width).reshape(height, width) % 61 / 60 * (levels - 1)).astype(int)


def save(path, array, **options):
    from PIL import Image

    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF of the other byte order"])
def test_16_bits_become_8(tmp_path, kind):
    deep = ramp(65536).astype(">u2" if "other" in kind else np.uint16)
    got = decoded(save(tmp_path / "x.png", deep, format=kind[:4].strip()))
    assert (got == (deep // 256)[..., None]).all() and got.min() == 0 and got.max() == 255


def test_16_bits_of_a_portable_graymap(tmp_path):
    deep = ramp(65536).astype(">u2")
    (tmp_path / "x.png").write_bytes(b"P5\n64 64\n65535\n" + deep.tobytes())
    assert (decoded(tmp_path / "x.png") == (deep // 256)[..., None]).all()


def test_16_bits_with_a_transparent_grey_are_on_white(tmp_path):
    deep = ramp(65536).astype(np.uint16)
    got = decoded(save(tmp_path / "x.png", deep, transparency=int(deep[0, 7])))
    assert (got[deep == deep[0, 7]] == 255).all() and (got == (deep // 256)[..., None])[deep != deep[0, 7]].all()


HOLDS = {
    "PNG": "1 L P RGB LA RGBA",
    "TIFF": "1 L P RGB LA PA RGBA CMYK YCbCr RGBX LAB I F",
    "WEBP": "L P RGB LA RGBA CMYK HSV",
    "GIF": "1 L P RGB LA RGBA",
    "BMP": "1 L P RGB RGBA",
    "JPEG": "1 L RGB CMYK YCbCr RGBX",
}


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind, modes in HOLDS.items() for mode in modes.split()])
def test_every_mode_comes_out_right_or_is_unreadable(tmp_path, kind, mode):
    """Blue on the left, yellow on the right, dark and light where there is no colour; nothing is transparent."""
    from PIL import Image

    scene = Image.new("RGB", (64, 64), (20, 30, 200))
    scene.paste((230, 220, 40), (32, 0, 64, 64))
    grey = scene.convert("L")
    if mode == "LAB":  # nothing converts to it; older versions of Pillow convert nothing from it, either
        grey = scene = Image.new("RGB", (64, 64), (127, 127, 127))
        image = Image.new(mode, (64, 64), (136, 128, 128))
    else:
        start = scene.convert("RGBA") if mode == "PA" else grey if mode in ("I", "F", "1") else scene
        image = start.convert(mode, palette=Image.Palette.ADAPTIVE, dither=Image.Dither.NONE)
    got = decoded(save(tmp_path / "x.png", image, format=kind))
    if mode in ("I", "F") or (mode == "LAB" and got is None):
        assert got is None
        return
    want = np.asarray({"1": image.convert("RGB"), "L": grey, "LA": grey}.get(mode, scene).convert("RGB")).astype(int)
    wrong = np.abs(got - want)
    assert wrong[:, :28].max() < 12 and wrong[:, 36:].max() < 12  # some kinds blur the edge


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_white_shows_through(tmp_path, mode):
    """Transparent on the left, where the colours that nobody sees are black."""
    from PIL import Image

    alpha = Image.new("L", (64, 64), 0)
    alpha.paste(255, (32, 0, 64, 64))
    alpha.paste(128, (60, 0, 64, 64))
    if mode in ("RGBA", "LA"):
        image = Image.new(mode[:-1], (64, 64), 0)
        image.paste(100 if mode == "LA" else (100, 100, 100), (32, 0, 64, 64))
        image.putalpha(alpha)
        path = save(tmp_path / "x.png", image)
    else:
        image = Image.new("RGB" if mode == "RGB" else "L", (64, 64), 0)
        image.paste((100,) * 3 if mode == "RGB" else 100, (32, 0, 64, 64))
        if mode == "P":
            image = image.convert("P")
        path = save(tmp_path / "x.png", image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    got = decoded(path)
    assert (got[:, :31] == 255).all() and (got[:, 33:59] == 100).all()
    assert not mode.endswith("A") or abs(int(got[0, 63, 0]) - 177) <= 1


def test_an_opaque_picture_keeps_its_bits(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for ending, image in (
        ("png", pixels),
        ("bmp", pixels),
        ("png", np.dstack([pixels, np.full((64, 64), 255, np.uint8)])),
    ):
        assert (decoded(save(tmp_path / f"x.{ending}", image)) == pixels).all()
    path = save(tmp_path / "x.jpg", pixels)
    with Image.open(path) as plain:
        assert (decoded(path) == np.asarray(plain)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, kind, turned):
    """The seven ways a camera may have been held, and none: white is above on the left, black else."""
    from PIL import Image

    undo = (None, 0, 3, 1, 5, 2, 6, 4)[turned - 1]  # Image.Transpose that stores an upright picture this way
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:32, :20] = 255
    stored = Image.fromarray(upright)
    stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = turned
    got = decoded(save(tmp_path / "x.jpg", stored, format=kind, exif=exif)).astype(int)
    assert got[4:28, 4:16].min() > 200 and got[36:].max() < 60 and got[:, 24:].max() < 60


def test_16_bits_are_turned_too_and_damaged_exif_is_passed_over(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    deep = ramp(65536).astype(np.uint16)
    assert (decoded(save(tmp_path / "x.png", deep, exif=exif)) == np.rot90(deep // 256, -1)[..., None]).all()
    grey = ramp().astype(np.uint8)
    assert (
        decoded(save(tmp_path / "y.png", grey, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")) == grey[..., None]
    ).all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_pictures_the_first_is_taken(tmp_path, kind):
    from PIL import Image

    first, second = (Image.new("RGB", (64, 64), (level,) * 3) for level in (40, 200))
    first.save(tmp_path / "x.png", format=kind, save_all=True, append_images=[second])
    assert np.abs(decoded(tmp_path / "x.png").astype(int) - 40).max() < 4


def test_what_is_no_picture_is_named_and_left_out(tmp_path):
    folder = photographs(tmp_path, each=10)
    bike = folder / "amazon" / "bike"
    (bike / "folder.png").mkdir()
    (bike / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    (bike / "circle.jpg").symlink_to(bike / "circle.jpg")
    (bike / "empty.jpg").touch()
    os.mkfifo(bike / "pipe.png")
    os.rename(bike / "3.jpg", bike / "3.JPG")
    (bike / "float.png").write_bytes(save(tmp_path / "x.tiff", ramp().astype(np.float32)).read_bytes())
    with pytest.warns(
        UserWarning, match="6 images cannot be read and are left out: amazon.bike.circle.jpg, amazon.bike.em"
    ):
        d = office(tmp_path, max_unreadable=0.1)
    assert len(d.y_train) + len(d.y_test) == 80


def test_hidden_entries_are_no_data(tmp_path):
    folder = photographs(tmp_path)
    plain = office(tmp_path)
    (folder / ".git").mkdir()
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden"):
        (folder / "amazon" / name).mkdir()
        (folder / "amazon" / name / "0.jpg").write_bytes((folder / "amazon" / "bike" / "0.jpg").read_bytes())
        (folder / "dslr" / "mug" / name).mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.jpg", ".0.jpg"):
        (folder / "amazon" / name).write_bytes(b"\0\5\x16\7")
        (folder / "amazon" / "bike" / name).write_bytes(b"\0\5\x16\7")
    d = office(tmp_path)
    assert d.classes == ("bike", "mug") and torch.equal(d.x_train, plain.x_train)


def test_names_that_are_no_utf_8(tmp_path):
    """An old zip, unpacked on Linux: files, damaged ones, and a class."""
    folder = photographs(tmp_path)
    for domain in folder.iterdir():
        os.rename(domain / "mug", os.fsencode(domain) + b"/caf\xe9")
    bike = os.fsencode(folder / "amazon" / "bike")
    os.rename(bike + b"/0.jpg", bike + b"/\xe9.jpg")
    with open(bike + b"/\xe8.jpg", "wb") as file:
        file.write(b"damaged")
    for _ in range(2):  # from the folder, then from the decoded copy
        with pytest.warns(UserWarning, match="1 images .*amazon.bike.\\\\xe8.jpg"):
            d = office(tmp_path, max_unreadable=0.1)
        assert d.classes == ("bike", "caf\\xe9") and len(d.y_train) + len(d.y_test) == 80
        assert repr(d).encode("utf-8")


@pytest.mark.parametrize("times", ["new", "restored"])
def test_images_changed_in_place_are_decoded_anew(tmp_path, times):
    """Bitmaps keep their size; some programs restore the time of modification, too."""
    folder = photographs(tmp_path)
    one = folder / "amazon" / "bike" / "0.jpg"
    one.unlink()
    one = save(one.with_suffix(".bmp"), np.full((40, 30, 3), 10, np.uint8))
    first, before = office(tmp_path), one.stat()
    save(one, np.full((40, 30, 3), 250, np.uint8))
    if times == "restored":
        os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one.stat().st_size == before.st_size
    second = office(tmp_path)
    changed = sum(int((getattr(second, k) != getattr(first, k)).flatten(1).any(1).sum()) for k in ("x_train", "x_test"))
    assert changed == 1


def test_a_decoded_copy_of_older_rules_is_not_used(tmp_path):
    """Its fingerprint went by name and size."""
    folder = photographs(tmp_path)
    first, cache = office(tmp_path), tmp_path / "office_caltech_10.16px.npz"
    files, _ = domains._listing("", folder, first.domains, None)
    listing = hashlib.sha256("".join(f"{f} {f.stat().st_size}\n" for f, _, _ in files).encode()).hexdigest()
    with np.load(cache) as kept:
        old = dict(kept) | {"x": kept["x"] // 2, "listing": np.array(listing)}
    np.savez(cache, **old)
    assert torch.equal(office(tmp_path).x_train, first.x_train)


@quick
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), share=st.floats(0, 1))
def test_stratified_takes_each_class_in_proportion(labels, share):
    labels = np.array(labels)
    count = round(share * len(labels))
    mask = domains._stratified(labels, count)
    assert mask.sum() == count
    for c in np.unique(labels):
        exact = (labels == c).sum() * count / len(labels)
        assert abs(mask[labels == c].sum() - exact) < 1


def test_real_digits_five(needs_data):
    names = ("mnist", "usps", "syn", "mnistm")
    root = needs_data("Digits-Five", *(f"digits_five/{name}.npz" for name in names))
    d = data.load("digits_five", root=root, download=False, domains=names, train=743)
    assert d.shape == (3, 28, 28) and d.domains == names
    assert d.domain_train.bincount().tolist() == [743] * 4 and d.domain_test.bincount().tolist() == [1860] * 4


def test_real_office_caltech_10(needs_data, tmp_path):
    root = needs_data("Office-Caltech-10", "office_caltech_10")
    (tmp_path / "office_caltech_10").symlink_to(root / "office_caltech_10")  # so that the cache is written elsewhere
    d = data.load("office_caltech_10", root=tmp_path, size=32, train=62)
    assert d.domain_test.bincount().tolist() == [192, 225, 32, 59]  # the test sets of FedBN and FedWon
    assert d.domain_train.bincount().tolist() == [62] * 4 and d.num_classes == 10

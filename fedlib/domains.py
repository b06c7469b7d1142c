"""Images of the same classes from several domains: drawn, photographed, printed.

`load` of these names gives a `Data` that knows the domain of each image; `partition.by_domain` makes clients of them.
"""

import contextlib
import functools
import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from fedlib.checks import is_whole
from fedlib.data import (
    DIGITS,
    DOMAIN_KEYS,
    KEYS,
    LOADERS,
    PUBLIC,
    Data,
    from_arrays,
    keep_archive,
    load,
    read_archive,
    read_npz,
    register,
)

if TYPE_CHECKING:
    from PIL import Image

DIGIT_DOMAINS = ("plain", "photo", "street", "type", "faint")
DIGITS_FIVE = ("mnist", "svhn", "usps", "syn", "mnistm")
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)


@register("digit_domains")
def _digit_domains(root: Path, download: bool, *, train: int | None = None, seed: int = 0) -> Data:
    """Five domains of 16x16 colour digits, made from scikit-learn's 1,797 handwritten ones; nothing is downloaded.

    plain   as they are, enlarged
    photo   |patch - digit|, the patch a random smooth colour texture: the construction of MNIST-M
    street  one colour on another under uneven light, neighbours cut off at both sides: like house numbers
    type    printed, in fonts that matplotlib brings along: like SynthDigits
    faint   dark on bright grey, little contrast, noisy

    Each handwritten digit is used in one domain only, 449 in each; as many are printed. A third of each domain is for
    testing. `train`: images for training kept of each domain, all 299 when left out. `seed` draws backgrounds, colours
    and who goes where.
    """
    rng = np.random.default_rng(seed)
    handwritten = LOADERS["digits"](root, download)
    small = torch.cat([handwritten.x_train, handwritten.x_test]).float() / 255
    labels = torch.cat([handwritten.y_train, handwritten.y_test]).numpy()
    ink = F.interpolate(small, size=(16, 16), mode="bilinear").squeeze(1).numpy()  # (N, 16, 16), 0 paper, 1 ink
    order = rng.permutation(len(ink))
    count = len(ink) // 4
    parts = [order[i * count : (i + 1) * count] for i in range(4)]
    own = dict(zip(("plain", "photo", "street", "faint"), parts, strict=True))
    styles = {"plain": _plain_style, "photo": _photo_style, "street": _street_style, "faint": _faint_style}
    x, y, domain = [], [], []
    for number, name in enumerate(DIGIT_DOMAINS):
        y.append(rng.permutation(np.arange(count) % 10) if name == "type" else labels[own[name]])
        drawn = _printed(y[-1], rng) if name == "type" else styles[name](ink[own[name]], rng)
        x.append(np.rint(255 * drawn.clip(0, 1)).astype(np.uint8))
        domain.append(np.full(count, number))
    return _split_domains(
        "digit_domains",
        np.concatenate(x),
        np.concatenate(y),
        np.concatenate(domain),
        DIGITS,
        DIGIT_DOMAINS,
        test_share=1 / 3,
        train=train,
    )


def _plain_style(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, 16, 16) ink in [0, 1] -> (N, 16, 16, 3) in [0, 1]; so do the other styles."""
    return np.repeat(ink[..., None], 3, axis=-1)


def _photo_style(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    patch = np.clip(0.5 + 0.3 * _texture(len(ink), rng), 0, 1)
    return np.abs(patch - ink[..., None])


def _street_style(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(ink)
    paper, paint = rng.random((n, 1, 1, 3)), rng.random((n, 1, 1, 3))
    dark = rng.random((n, 1, 1, 1)) < 0.5  # the colours differ in lightness, so that the digit can be read
    paper, paint = np.where(dark, 0.45 * paper, 0.55 + 0.45 * paper), np.where(dark, 0.55 + 0.45 * paint, 0.45 * paint)
    scene = ink.copy()
    left, right = ink[rng.permutation(n)], ink[rng.permutation(n)]
    scene[:, :, :3] = np.maximum(scene[:, :, :3], left[:, :, -6:-3])
    scene[:, :, -3:] = np.maximum(scene[:, :, -3:], right[:, :, 3:6])
    light = 1 + 0.15 * _texture(n, rng).mean(axis=-1, keepdims=True)
    return (paper + (paint - paper) * scene[..., None]) * light


def _faint_style(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bright = rng.uniform(0.6, 0.8, (len(ink), 1, 1, 1))
    return bright - 0.25 * ink[..., None] + 0.03 * rng.standard_normal((*ink.shape, 1)) + np.zeros(3)


def _texture(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 16, 16, 3) smooth random fields, about standard normal: two scales of colour, light first."""
    field = torch.zeros(n, 3, 16, 16)
    for cells, weight in ((3, 0.8), (6, 0.6)):
        light, colour = rng.standard_normal((n, 1, cells, cells)), rng.standard_normal((n, 3, cells, cells))
        coarse = torch.from_numpy(0.8 * light + 0.6 * colour).float()
        field += weight * F.interpolate(coarse, size=(16, 16), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1).numpy()


def _printed(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) digits -> (N, 16, 16, 3): each in a random font, size, place, angle and pair of colours, dark on light."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the data set 'digit_domains' needs matplotlib's fonts: pip install matplotlib") from error
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = np.empty((len(labels), 16, 16, 3))
    for i, label in enumerate(labels):
        font = ImageFont.truetype(str(folder / rng.choice(FONTS)), int(rng.integers(56, 77)))
        canvas = Image.new("L", (80, 80))
        at = tuple(40 + rng.integers(-6, 7, 2))
        ImageDraw.Draw(canvas).text(at, str(label), fill=255, font=font, anchor="mm")
        canvas = canvas.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
        ink = np.asarray(canvas.resize((16, 16), Image.Resampling.BOX), dtype=float)[..., None] / 255
        paper, paint = rng.uniform(0.7, 1, 3), rng.uniform(0, 0.5, 3)
        drawn[i] = paper + (paint - paper) * ink
    return drawn


def _split_domains(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    domain: np.ndarray,
    classes: Sequence[str],
    domains: Sequence[str],
    test_share: float,
    train: int | None = None,
    chosen: Sequence[str] | None = None,
) -> Data:
    """Within each domain ceil(test_share * n) images for testing, classes in proportion; the same split for everyone.

    train: images for training kept of each domain; all of them when left out. chosen: domains kept, in this order.
    """
    split, chosen = {"train": [], "test": []}, tuple(chosen or domains)
    number = np.array([chosen.index(d) if d in chosen else -1 for d in domains])
    for domain_name in chosen:
        d = domains.index(domain_name)
        members = np.random.default_rng([0, d]).permutation(np.flatnonzero(domain == d))
        test = _stratified(y[members], math.ceil(test_share * len(members)))
        rest = members[~test]
        _check_train(train, len(rest), domain_name)
        split["test"].append(members[test])
        split["train"].append(rest if train is None else rest[_stratified(y[rest], train)])
    arrays = {}
    for part, indices in split.items():
        index = np.sort(np.concatenate(indices))
        arrays |= {f"x_{part}": x[index], f"y_{part}": y[index], f"domain_{part}": number[domain[index]]}
    return from_arrays(name, **arrays, classes=classes, domains=chosen)


def _check_train(train: int | None, there: int, domain: str) -> None:
    if train is not None and not (is_whole(train) and 1 <= train <= there):
        raise ValueError(
            f"train must be between 1 and {there}, the training images of domain {domain!r}, got {train!r}"
        )


def _stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Mask of `count` positions, of each class its share, rounded by largest remainder; the first ones of each."""
    held = np.bincount(labels)
    exact = held * count / len(labels)
    taken = np.floor(exact).astype(int)
    taken[np.argsort(taken - exact, kind="stable")[: count - taken.sum()]] += 1
    rank = np.empty(len(labels), dtype=int)
    for c in range(len(held)):
        members = np.flatnonzero(labels == c)
        rank[members] = np.arange(len(members))
    return rank < taken[labels]


@register("digits_five")
def _digits_five(
    root: Path, download: bool, *, size: int = 28, train: int | None = None, domains: Sequence[str] = DIGITS_FIVE
) -> Data:
    """Digits-Five: MNIST, SVHN, USPS, SynthDigits ("syn") and MNIST-M, as `size` x `size` colour images.

    <root>/digits_five/NAME.npz is used for each domain where it is there (arrays as for `read_npz`). For MNIST, SVHN
    and USPS torchvision is asked otherwise, and FedBN's numbers are kept: 7,438 images for training and 1,860 for
    testing, classes in proportion. A domain that is to be had in neither way is named in a warning and left out.

    Args:
        train: images for training of each domain; FedBN uses 743. (Others as in `load`.)

    Raises:
        FileNotFoundError: fewer than two domains are there.
        ValueError: a domain that is none of the five.
    """
    unknown = set(domains) - set(DIGITS_FIVE)
    if unknown or not domains:
        raise ValueError(f"domains must be some of {', '.join(DIGITS_FIVE)}, got {', '.join(domains) or 'none'}")
    found, missing = {}, {}
    for name in domains:
        try:
            found[name] = _one_of_five(name, root, download)
        except (OSError, ImportError) as error:
            missing[name] = str(error)
    if missing:
        told = (
            f"digits_five: {', '.join(missing)} not found, left out; put x_train, y_train, x_test, y_test (images "
            f"uint8, (N, H, W, 3)) into {(root / 'digits_five').absolute()}/NAME.npz. "
            + "; ".join(f"{name}: {reason.split('. ')[0]}" for name, reason in missing.items())
        )
        if len(found) < 2:
            raise FileNotFoundError(told)
        warnings.warn(told, stacklevel=3)
    arrays = {key: [] for key in KEYS + DOMAIN_KEYS}
    for d, (name, part) in enumerate(found.items()):
        _check_train(train, len(part["y_train"]), name)
        for split, count in (("train", train), ("test", None)):
            kept = slice(None) if count is None else _stratified(part[f"y_{split}"], count)
            arrays[f"x_{split}"].append(_colour(part[f"x_{split}"][kept], size))
            arrays[f"y_{split}"].append(part[f"y_{split}"][kept])
            arrays[f"domain_{split}"].append(np.full(len(arrays[f"y_{split}"][-1]), d))
    return from_arrays(
        "digits_five",
        **{key: np.concatenate(parts) for key, parts in arrays.items()},
        classes=DIGITS,
        domains=tuple(found),
    )


def _one_of_five(name: str, root: Path, download: bool) -> dict[str, np.ndarray]:
    """Images (N, H, W, C) and labels of one domain of Digits-Five, in an order that is random but always the same."""
    file = root / "digits_five" / f"{name}.npz"
    if not file.is_file() and name not in PUBLIC:
        raise FileNotFoundError(f"no file {file.absolute()}")
    data = read_npz(file, classes=DIGITS) if file.is_file() else load(name, root, download)
    arrays, rng = {}, np.random.default_rng(0)
    for split, count in (("train", 7438), ("test", 1860)):
        x, y = getattr(data, f"x_{split}").permute(0, 2, 3, 1).numpy(), getattr(data, f"y_{split}").numpy()
        order = rng.permutation(len(y))
        if not file.is_file() and len(order) > count:
            order = order[_stratified(y[order], count)]
        arrays |= {f"x_{split}": x[order], f"y_{split}": y[order]}
    return arrays


def _colour(x: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W, C) with C 1 or 3 -> uint8 (N, size, size, 3), smoothed where it shrinks."""
    if x.shape[1:3] != (size, size):
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        x = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


@dataclass(frozen=True)
class _Folders:
    """A data set of photographs in folders DOMAIN/CLASS/, and where to get it."""

    domains: tuple[str, ...]
    url: str
    classes: tuple[str, ...] | None = None  # these of many; None: the domains must have the same ones


DOMAIN_SETS = {
    "office_caltech_10": _Folders(("amazon", "caltech", "dslr", "webcam"), "https://github.com/med-air/FedBN"),
    "pacs": _Folders(("art_painting", "cartoon", "photo", "sketch"), "https://huggingface.co/datasets/flwrlabs/pacs"),
    "domainnet": _Folders(
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        "http://ai.bu.edu/M3SDA/",
        ("bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra"),
    ),
}
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
NO_CLASSES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")  # what systems leave; all else of theirs has a dot


def _load_folders(
    name: str,
    root: Path,
    download: bool,
    *,
    size: int = 64,
    train: int | None = None,
    domains: Sequence[str] | None = None,
    max_unreadable: float = 0.01,
) -> Data:
    """A data set of `DOMAIN_SETS`: <root>/<name>/DOMAIN/CLASS/*.jpg, decoded once and kept as <name>.<size>px.npz.

    size: images become `size` x `size`, whatever their shape. train: images for training of each domain (all).
    domains: some of them. max_unreadable: share of its images that may be damaged; they are named and left out.
    A fifth of each domain, rounded up, is for testing, classes in proportion, the same images for everyone.
    The classes of domainnet are the ten that FedBN and FedWon use.

    Files that end in .jpg, .jpeg, .png, .bmp or .webp, in either case, are read by Pillow, whatever is in them: the
    first picture of several, turned upright as its EXIF says, grey or coloured, 16 bits as 8, on white where it is
    transparent. One that Pillow cannot turn into colours of a known range (floats, 32 bits) is unreadable.
    Hidden files and folders are no data. The folder is decoded anew when a file came, went or changed: in name, size,
    or time of change, which the system sets even where a program restores the time of modification.
    """
    known = DOMAIN_SETS[name]
    if domains is not None and (not domains or set(domains) - set(known.domains)):
        raise ValueError(f"{name}: domains must be some of {', '.join(known.domains)}, got {', '.join(domains)}")
    folder, cache = root / name, root / f"{name}.{size}px.npz"
    keys = ("x", "y", "domain", "domains", "classes", "unreadable", "listing")
    arrays = read_archive(cache, keys) if cache.is_file() else None
    if folder.is_dir():
        files, classes = _listing(name, folder, known.domains, known.classes)
        listing = _fingerprint(folder, files)
        if arrays is None or str(arrays["listing"]) != listing:  # nothing decoded yet, or from other images
            arrays = _decode(files, size) | {
                "domains": np.array(known.domains),
                "classes": np.array([_printable(name) for name in classes]),
                "listing": np.array(listing),
            }
            _check_unreadable(name, arrays["unreadable"].tolist(), len(files), max_unreadable)
            keep_archive(name, cache, arrays)
    elif arrays is None:
        raise FileNotFoundError(
            f"data set {name!r} is not here: put its images from {known.url} into "
            f"{folder.absolute()}, as {known.domains[0]}/CLASS/NAME.jpg and so on for "
            f"{', '.join(known.domains[1:])}. For another folder give root=... or set FEDLIB_DATA"
        )
    bad = arrays["unreadable"].tolist()
    _check_unreadable(name, bad, len(arrays["y"]) + len(bad), max_unreadable)
    if bad:
        warnings.warn(f"{name}: {len(bad)} images cannot be read and are left out: {_some(bad)}", stacklevel=3)
    return _split_domains(
        name,
        arrays["x"],
        arrays["y"],
        arrays["domain"],
        arrays["classes"].tolist(),
        known.domains,
        test_share=0.2,
        train=train,
        chosen=domains,
    )


def _listing(
    name: str, folder: Path, domains: Sequence[str], wanted: Sequence[str] | None
) -> tuple[list[tuple[Path, int, int]], list[str]]:
    """(file, class, domain) of all images in a fixed order, and the classes. Refuses domains that do not match."""
    classes = {}
    for domain in domains:
        if not (folder / domain).is_dir():
            there = sorted(_folders(folder))
            raise FileNotFoundError(
                f"{name}: no folder for domain {domain!r} in {folder.absolute()}; there are "
                f"{', '.join(there) or 'none'}"
            )
        classes[domain] = _folders(folder / domain)
        if not classes[domain]:
            raise ValueError(f"{name}: the folder of domain {domain!r} is empty; it must hold one folder per class")
    expected = set(wanted) if wanted else set.union(*classes.values())
    for domain, found in classes.items():
        if expected - found:
            lacking = _some(sorted(expected - found))
            raise ValueError(
                f"{name}: domain {domain!r} has no folder for class(es) {lacking}, "
                f"which {'are needed' if wanted else 'its siblings have'}"
            )
    files = []
    for d, domain in enumerate(domains):
        for c, label in enumerate(sorted(expected)):
            inside = sorted(
                path
                for path in (folder / domain / label).iterdir()
                if path.suffix.lower() in PHOTOGRAPHS and not path.name.startswith(".")
            )
            if not inside:
                raise ValueError(
                    f"{name}: no images in {folder.absolute() / domain / label} (accepted: {', '.join(PHOTOGRAPHS)})"
                )
            files += [(path, c, d) for path in inside]
    return files, sorted(expected)


def _folders(folder: Path) -> set[str]:
    """Names of the folders in `folder` that someone put there."""
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in NO_CLASSES}


def _fingerprint(folder: Path, files: Sequence[tuple[Path, int, int]]) -> str:
    """Changes with the name, the size and the times of change of any file, and with how files become pixels.

    Reading all files would be surer, and take as long as decoding them.
    """
    found = hashlib.sha256(b"upright, on white, 16 bits as 8")
    for path, *_ in files:
        try:
            about = path.stat()
            numbers = (about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        except OSError:  # a link that leads nowhere
            numbers = ()
        found.update(os.fsencode(path.relative_to(folder)) + f"\0{numbers}\0".encode())
    return found.hexdigest()


def _decode(files: Sequence[tuple[Path, int, int]], size: int) -> dict[str, np.ndarray]:
    """x uint8 (N, size, size, 3), y, domain int64 (N,) of the images that can be read; the others' names."""
    from PIL import Image

    x, y, domain, unreadable = [], [], [], []
    for path, label, number in files:
        try:
            if not path.is_file():  # a link that leads nowhere, a folder, a pipe that would never end
                raise OSError("no file")
            with Image.open(path) as image:
                x.append(np.asarray(_upright_rgb(image).resize((size, size), Image.Resampling.BILINEAR)))
        except Exception:  # damage shows as whatever Pillow stumbles over: OSError, SyntaxError, struct.error, ...
            unreadable.append(_printable(str(Path(*path.parts[-3:]))))
            continue
        y.append(label)
        domain.append(number)
    return {
        "x": np.stack(x) if x else np.zeros((0, size, size, 3), np.uint8),
        "y": np.array(y, dtype=np.int64),
        "domain": np.array(domain, dtype=np.int64),
        "unreadable": np.array(unreadable, dtype=str),
    }


def _upright_rgb(image: "Image.Image") -> "Image.Image":
    """An image of 8 bits and three colours, the way up that its EXIF says; white shows through where it is transparent.

    Raises:
        ValueError: numbers without a known range, or colours that Pillow does not convert.
    """
    from PIL import Image, ImageOps

    # damaged EXIF makes Pillow warn or raise whatever it stumbles over; the picture itself may be whole
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        ImageOps.exif_transpose(image, in_place=True)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:
        raise ValueError("a transparent colour of 16 bits, of which Pillow keeps 8")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.int64)
        if clear is not None:
            grey[grey == clear] = 65535
        return Image.fromarray((grey // 256).astype(np.uint8)).convert("RGB")  # as Pillow does for 16 bits a colour
    if image.mode in ("I", "F"):
        raise ValueError(f"numbers of mode {image.mode} have no known range")
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or clear is not None or palette == "RGBA":
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("RGB")


def _printable(name: str) -> str:
    """A name of a file that may not be UTF-8, as text that can be printed and saved."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _check_unreadable(name: str, unreadable: Sequence[str], total: int, most: float) -> None:
    if len(unreadable) > most * total:
        raise ValueError(
            f"{name}: {len(unreadable)} of {total} images cannot be read ({_some(unreadable)}), more than "
            f"max_unreadable={most:g} allows"
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


for _name in DOMAIN_SETS:
    register(_name)(functools.partial(_load_folders, _name))

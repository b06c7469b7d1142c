"""What clients learn from: images and texts as uint8 tensors, normalised and augmented only when used.

`load(name)` gives a `Data`: training and test tensors that live on one device, without a DataLoader. Images stay
uint8 in channels-last memory until `augment` shifts and mirrors a batch and `prepare` makes floats of it. What was
downloaded is never unpickled. Images of several domains come from `fedlib.domains`, texts from `fedlib.texts`.
"""

import dataclasses
import functools
import gzip
import inspect
import math
import os
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from fedlib import checks
from fedlib.files import have, replacing

KEYS = ("x_train", "y_train", "x_test", "y_test")
DOMAIN_KEYS = ("domain_train", "domain_test")
VAL_KEYS = ("x_val", "y_val", "domain_val")


@dataclass(frozen=True, eq=False)
class Data:
    """One data set. Build it with `load`, `from_arrays` or `texts.from_texts`, which check their input.

    Attributes:
        x_train, x_test: uint8 (N, C, H, W), channels-last in memory; of a text (N, L), numbers of characters.
        y_train, y_test: int64 (N,), values 0..num_classes-1. The classes of a text are its characters.
        mean, std: per channel, of the training images scaled to [0, 1]; std is 1 for a constant channel. () for a text.
        domains: where examples of several kinds come from, such as the speaker of a text; () for one kind.
        domain_train, domain_test: int64 (N,), the domain of each example; see `partition.by_domain`.
        x_val, y_val, domain_val: validation images, by which rates and other choices are made; None without. See
            `hold_out`.
    """

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    domains: tuple[str, ...] = ()
    domain_train: torch.Tensor | None = None
    domain_test: torch.Tensor | None = None
    x_val: torch.Tensor | None = None
    y_val: torch.Tensor | None = None
    domain_val: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W) of an image, (L,) of a text."""
        return tuple(self.x_train.shape[1:])

    @property
    def is_text(self) -> bool:
        """Whether examples are windows of characters rather than images."""
        return self.x_train.dim() == 2

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> "Data":
        """The same data set with x, y and domains on `device`; memory format and dtypes stay."""
        there = {key: getattr(self, key) for key in (*KEYS, *DOMAIN_KEYS, *VAL_KEYS)}
        return dataclasses.replace(self, **{key: t.to(device) for key, t in there.items() if t is not None})

    def read(self, x: torch.Tensor) -> str:
        """The characters of one window (L,) of a text."""
        return "".join(self.classes[i] for i in x.tolist())

    def _sizes(self) -> str:
        held = () if self.y_val is None else (f"{len(self.y_val):,} validation",)
        first = (f"{len(self.y_train):,} training", *held)
        return f"{', '.join(first)} and {len(self.y_test):,} test"

    def __repr__(self) -> str:
        if self.is_text:
            return (
                f"Data({self.name!r}: {self._sizes()} windows of "
                f"{self.shape[0]} characters on {self.x_train.device}; {self.num_classes} different characters, "
                f"{len(self.domains)} domain{'s' * (len(self.domains) != 1)})"
            )
        shown = ", ".join(self.classes[:10]) + (", ..." if self.num_classes > 10 else "")
        c, h, w = self.shape
        return (
            f"Data({self.name!r}: {self._sizes()} images, "
            f"{c}x{h}x{w} uint8 on {self.x_train.device}; {self.num_classes} classes: {shown}"
            + (f"; {len(self.domains)} domains: {', '.join(self.domains)}" if self.domains else "")
            + ")"
        )


def from_arrays(
    name: str,
    x_train,
    y_train,
    x_test,
    y_test,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] = (),
    domain_train=None,
    domain_test=None,
) -> Data:
    """Check arrays and make a `Data` of them, which keeps copies: changing an array later changes no data set.

    Args:
        name: of the data set.
        x_train, x_test: uint8, 0 black to 255 white, (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3 (read as
            (N, H, W, C) where both fit); arrays or tensors.
        y_train, y_test: integers (N,), from 0.
        classes: one name a class; by default the numbers 0..largest training label.
        domains: names of the domains.
        domain_train, domain_test: integers (N,), which of them each image comes from.

    Raises:
        ValueError: wrong dtype, wrong shape, NaN, labels out of range, images and labels of different number, training
            and test images of different shape or range (0..1 beside 0..255), without `classes` training and test
            labels numbered differently (from 1 and from 0), a domain without images. It names the array and what it
            holds.

    Warns of pixels that were scaled to other numbers before they were cast to uint8, such as 0..1 or 0..16, and,
    without `classes`, of classes below the largest label that have no training image, as 0 of labels from 1.
    """
    x = {"x_train": _checked_images(name, "x_train", x_train), "x_test": _checked_images(name, "x_test", x_test)}
    y = {
        "y_train": _checked_labels(name, "y_train", y_train, len(x["x_train"])),
        "y_test": _checked_labels(name, "y_test", y_test, len(x["x_test"])),
    }
    if x["x_train"].shape[1:] != x["x_test"].shape[1:]:
        raise ValueError(
            f"{name}: x_train holds images of (H, W, C) = {x['x_train'].shape[1:]}, x_test of "
            f"{x['x_test'].shape[1:]}; they must have the same shape"
        )
    largest, numbered = int(y["y_train"].max()), classes is None
    if classes is None:
        if largest >= len(y["y_train"]):  # a stray label would otherwise make a classifier of millions of classes
            raise ValueError(
                f"{name}: y_train has label {largest} but only {len(y['y_train'])} images; labels must be "
                f"0..classes-1 (or give `classes`)"
            )
        classes = [str(c) for c in range(largest + 1)]
    classes = tuple(str(c) for c in classes)
    for key, labels in y.items():
        if int(labels.max()) >= len(classes):
            raise ValueError(
                f"{name}: {key} has label {int(labels.max())}, out of range: {len(classes)} classes take "
                f"labels 0..{len(classes) - 1}"
            )
    if numbered:
        _check_numbering(name, y["y_train"], y["y_test"])
    counts = _levels(x["x_train"])
    used = np.flatnonzero(counts.sum(0))
    test_range = int(x["x_test"].min()), int(x["x_test"].max())
    _check_range(name, used, {"x_train": (int(used[0]), int(used[-1])), "x_test": test_range})
    mean, std = _moments(counts)
    tensors: dict[str, Any] = {key: torch.from_numpy(images).permute(0, 3, 1, 2) for key, images in x.items()}
    tensors |= {key: torch.from_numpy(labels) for key, labels in y.items()}
    tensors |= _checked_domains(name, tuple(str(d) for d in domains), y, domain_train, domain_test)
    return Data(name=name, classes=classes, mean=mean, std=std, **tensors)


def as_array(values: Any) -> np.ndarray:
    """An array of whatever is given; it may share the caller's memory."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _checked_domains(name: str, domains: tuple[str, ...], y: dict, domain_train, domain_test) -> dict:
    """The three domain fields of a `Data`; none of them without domains."""
    given = {"domain_train": domain_train, "domain_test": domain_test}
    if not domains:
        extra = [key for key, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{name}: {extra[0]} needs `domains`, the names of the domains")
        return {}
    checked = {
        key: _checked_labels(name, key, value, len(y[key.replace("domain", "y")])) for key, value in given.items()
    }
    for key, values in checked.items():
        found = np.bincount(values, minlength=len(domains))
        if len(found) > len(domains):
            raise ValueError(
                f"{name}: {key} has domain {len(found) - 1}, out of range: {len(domains)} domains are "
                f"numbered 0..{len(domains) - 1}"
            )
        if not found.all():
            raise ValueError(f"{name}: {key} has no image of domain {domains[int(found.argmin())]!r}")
    return {"domains": domains} | {key: torch.from_numpy(values) for key, values in checked.items()}


def _check_numbering(name: str, y_train: np.ndarray, y_test: np.ndarray) -> None:
    """Refuse or warn of labels that look as if they were not numbered 0..classes-1, where no names say otherwise."""
    train, test = set(np.unique(y_train).tolist()), set(np.unique(y_test).tolist())
    unseen, empty = sorted(test - train), sorted(set(range(max(train))) - train)
    if unseen and (min(test) < min(train) or not test & train):
        raise ValueError(
            f"{name}: y_train has labels {_span(train)}, y_test {_span(test)}: a class must have the same number in "
            f"both, counted from 0 (if {_span(unseen)} shall be in the test only, give `classes`)"
        )
    if empty:
        warnings.warn(
            f"{name}: y_train has labels {_span(train)}, taken for {max(train) + 1} classes, of which "
            f"{_span(empty)} have no training image{f' (y_test has {_span(unseen)})' if unseen else ''}. Number the "
            f"classes from 0 without gaps, for example by np.unique(y, return_inverse=True), or give `classes`",
            stacklevel=3,
        )


def _span(numbers: Iterable[int]) -> str:
    """`1..10` of numbers that follow each other, else the first of them: `10, 20, 30`."""
    numbers = sorted(numbers)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}..{numbers[-1]}"
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


DARK = 16  # of 255; no set of photographs or drawings ends so low, what was scaled to 0..1, 0..15 or 0..16 does


def _check_range(name: str, used: np.ndarray, ranges: dict[str, tuple[int, int]]) -> None:
    """Refuse or warn of pixels that were scaled before they were cast to uint8. used: levels that x_train has."""
    scale = "scale them to 0..255 before they are cast to uint8"
    low, high = sorted(ranges, key=lambda key: ranges[key][1])
    if ranges[low][1] == 1 and ranges[high][1] > DARK:
        raise ValueError(
            f"{name}: {low} has pixel values {_range(ranges[low])}, {high} {_range(ranges[high])}; training and test "
            f"images must have the same range: {scale}"
        )
    for key, (_, largest) in ranges.items():
        if 0 < largest <= DARK:
            warnings.warn(
                f"{name}: {key} has pixel values {_range(ranges[key])}, taken for nearly black, since 255 is white. If "
                f"they are not, {scale}",
                stacklevel=3,
            )
    small, large = used[used <= DARK], used[used >= 255 - DARK]
    if 0 < small.max(initial=0) and len(large) and len(small) + len(large) == len(used):
        warnings.warn(
            f"{name}: x_train has only pixel values up to {small[-1]} and from {large[0]}, as numbers around 0 become "
            f"when they are cast to uint8. If they were, {scale}",
            stacklevel=3,
        )


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}..{ends[1]}"


def _own(values: np.ndarray, given: np.ndarray, dtype: type) -> np.ndarray:
    """`values`, made from `given`, in C order and in memory of their own; copied once at most."""
    values = np.ascontiguousarray(values, dtype)
    return values.copy() if np.may_share_memory(values, given) else values


def _nan_note(array: np.ndarray) -> str:
    bad = int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind in "fc" else 0
    return f" with {bad} values that are NaN or infinite" if bad else ""


def _checked_images(name: str, key: str, x) -> np.ndarray:
    """Images as a C-contiguous uint8 array (N, H, W, C) of their own."""
    x = given = as_array(x)
    if x.dtype != np.uint8:
        raise ValueError(
            f"{name}: {key} must be uint8 (pixel values 0..255), found {x.dtype} of shape {x.shape}{_nan_note(x)}"
        )
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"{name}: {key} must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3 and "
            f"no empty dimension, found {np.shape(x)}"
        )
    return _own(x, given, np.uint8)


def _checked_labels(name: str, key: str, y, count: int) -> np.ndarray:
    """Labels as an int64 array (count,) of their own."""
    y = given = as_array(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: {key} must be a 1-D array of integers, found {y.dtype} of shape {y.shape}{_nan_note(y)}"
        )
    if len(y) != count:
        raise ValueError(f"{name}: {key} has {len(y)} labels but x_{key.rsplit('_', 1)[1]} has {count} images")
    y = _own(y, given, np.int64)
    if y.min() < 0:
        raise ValueError(f"{name}: {key} has label {y.min()}, out of range: labels start at 0")
    return y


def _levels(x: np.ndarray) -> np.ndarray:
    """How often each of the 256 levels occurs in each channel of uint8 images (N, H, W, C): float64 (C, 256)."""
    counts = np.zeros((x.shape[3], 256))
    for start in range(0, len(x), 1000):
        for channel in range(x.shape[3]):
            counts[channel] += np.bincount(x[start : start + 1000, ..., channel].ravel(), minlength=256)
    return counts


def _moments(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and population standard deviation of uint8 images scaled to [0, 1], from their `_levels`.

    Exact counts, and no float copy of the data set.
    """
    level = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ level
    std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
    # A constant channel gets 1, so that normalising it gives zeros rather than NaN.
    return tuple(mean.tolist()), tuple(np.where(std > 1e-9, std, 1.0).tolist())


# --- Batches --------------------------------------------------------------------------------------------------------


def some(
    data: Data, images: int | None = None, test_images: int | None = None, seed: int = 0, *, validation: int = 0
) -> Data:
    """A data set with a random part of its training and of its test images; None keeps all of them, in their order.

    Args:
        validation: how many of the training images that are left over become validation images, at random. Nothing is
            taken from what is trained on, where a part of a set leaves enough.

    Raises:
        ValueError: a number that is not between 1 and what there is, or more validation images than are left over.
    """
    changed: dict[str, Any] = {}
    for split, number in (("train", images), ("test", test_images)):
        there = len(getattr(data, f"y_{split}"))
        if number is None:
            continue
        if not (checks.is_whole(number) and 1 <= number <= there):
            raise ValueError(f"{data.name!r} has {there} {split} images, so a part has 1 to {there}; got {number}")
        order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))
        changed |= _taken(data, split, split, order[:number])
        if split == "train" and validation:
            checks.whole(validation=validation)
            if validation > there - number:
                raise ValueError(
                    f"validation must be at most {there - number}, the training images of {data.name!r} that are left "
                    f"over, got {validation}; fl.data.hold_out takes them from those that would be trained on"
                )
            changed |= _taken(data, "train", "val", order[number : number + validation])
    if validation and data.is_text:
        raise ValueError(f"{data.name!r} is a text, whose windows overlap: take validation windows by fl.data.hold_out")
    if validation and images is None:
        raise ValueError("validation takes what `images` leaves over, and that keeps all; see fl.data.hold_out")
    return dataclasses.replace(data, **changed)


def hold_out(data: Data, share: float = 0.2, seed: int = 0) -> Data:
    """A data set some of whose training images have become validation images: the same share of every class.

    And of every class of every domain, where there are domains. Each gives ``share`` of its images, rounded, at least
    one and at most all but one. Of a text, every domain (a speaker, say) gives its last windows, and as many between
    these and the others are left out as share a character with them. Rates and other choices are made on these, so
    that the test images are looked at once.

    Args:
        share: between 0 and 1.
        seed: of the choice.

    Raises:
        ValueError: a share that is not that, a set that has validation images already, a group of one image, or a text
            whose windows are not in their order.
    """
    if not (checks.is_number(share) and 0 < share < 1):
        raise ValueError(f"share must lie between 0 and 1, got {share!r}")
    checks.whole(0, seed=seed)
    if data.y_val is not None:
        raise ValueError(f"{data.name!r} has {len(data.y_val)} validation images already")
    domain = data.domain_train.numpy(force=True) if data.domain_train is not None else np.zeros(len(data.y_train), int)
    label = np.zeros(len(domain), int) if data.is_text else data.y_train.numpy(force=True)
    rng, kept, held = np.random.default_rng(seed), [], []
    for d, c in sorted({*zip(domain.tolist(), label.tolist(), strict=True)}):
        members = np.flatnonzero((domain == d) & (label == c))
        gap = _overlapping(data.name, data.x_train[torch.from_numpy(members)].numpy(force=True)) if data.is_text else 0
        if len(members) < 2 + gap:
            what = f"domain {data.domains[d]!r}" if data.is_text else f"class {data.classes[c]!r}"
            raise ValueError(f"{data.name!r} has {len(members)} training example(s) of {what}: too few to hold any out")
        number = min(max(1, round(share * len(members))), len(members) - 1 - gap)
        order = members if data.is_text else rng.permutation(members)
        kept.append(order[: len(members) - number - gap])
        held.append(order[len(members) - number :])
    train, val = (torch.from_numpy(np.sort(np.concatenate(some))) for some in (kept, held))
    changed: dict[str, Any] = _taken(data, "train", "train", train) | _taken(data, "train", "val", val)
    if not data.is_text:
        rows = changed["x_train"].permute(0, 2, 3, 1).numpy(force=True)
        changed["mean"], changed["std"] = _moments(_levels(rows))
    return dataclasses.replace(data, **changed)


SENTENCE = 8  # characters that seldom repeat


def _overlapping(name: str, windows: np.ndarray) -> int:
    """How many windows of one text follow each window that share a character with it or its label."""
    n, L = windows.shape
    for stride in range(1, L if n > 1 else 1):
        if (windows[:-1, stride:] == windows[1:, :-stride]).all():
            return -(-(L + 1) // stride) - 1
    # No two neighbours overlap. If most windows overlap another one by half, they do but were torn apart; of short
    # windows that is language.
    half, torn = L // 2, np.zeros(n, bool)
    ends = {row.tobytes(): i for i, row in enumerate(windows[:, L - half :])}
    for start in range(half + 1 if half >= SENTENCE else 0):
        before = [ends.get(row.tobytes(), j) for j, row in enumerate(windows[:, start : start + half])]
        torn |= np.array(before) != np.arange(n)
    if torn.mean() > 0.5:
        raise ValueError(
            f"{name!r} has windows that are not in the order of their text, as fl.data.some leaves them: neighbours "
            "would come to lie on both sides; hold out first"
        )
    return 1


def _taken(data: Data, split: str, to: str, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields of the split ``to``, made of some examples of ``split``."""
    given = {name: getattr(data, f"{name}_{split}") for name in ("x", "y", "domain")}
    return {f"{name}_{to}": t[index.to(t.device)] for name, t in given.items() if t is not None}


def prepare(
    x_uint8: torch.Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """(x / 255 - mean) / std per channel, as `dtype`. Without mean and std: x / 255, in [0, 1].

    A text (N, L) needs no more than integers of the size that an embedding takes: it comes back as int64.

    Args:
        x_uint8: uint8 (..., C, H, W), any device; the memory format stays.
        mean, std: one float a channel.
        dtype: of the result.

    Raises:
        TypeError: x is not uint8 (scaled twice is a silent mistake).
        ValueError: a wrong mean or std.
    """
    if x_uint8.dtype != torch.uint8:
        raise TypeError(f"x_uint8 must be uint8 (prepare scales to [0, 1] itself), got {x_uint8.dtype}")
    if x_uint8.dim() == 2:
        return x_uint8.long()
    if mean is None and std is None:
        return x_uint8.to(dtype).div_(255)
    channels = x_uint8.shape[-3]
    mean = tuple(float(m) for m in mean) if mean is not None else (0.0,) * channels
    std = tuple(float(s) for s in std) if std is not None else (1.0,) * channels
    scale, offset = _scale_and_offset(mean, std, channels, x_uint8.device, dtype)
    return torch.addcmul(offset, x_uint8.to(dtype), scale)


@functools.lru_cache(maxsize=64)  # so that a GPU batch does not wait for six numbers to be copied there
def _scale_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std need one value for each of {channels} channels, got {mean} and {std}")
    if not np.isfinite(mean + std).all() or min(std) <= 0:
        raise ValueError(f"mean must be finite and std finite and positive, got mean={mean}, std={std}")
    with torch.inference_mode(False):  # a cached inference tensor would break a later training step
        scale = torch.tensor([1 / (255 * s) for s in std], dtype=dtype, device=device)
        offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=device)
        return scale.reshape(-1, 1, 1), offset.reshape(-1, 1, 1)


def augment(x: torch.Tensor, shift: torch.Tensor, flip: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Random crop and mirror, each image its own: zero-pad by `padding`, crop at `shift`, mirror where `flip`.

    The caller draws shift and flip, so this is a pure function: no loop over images, and no wait for the device (fit
    for CUDA graphs). For that reason the values of shift are checked on a CPU only.

    Args:
        x: (..., B, C, H, W), float or uint8.
        shift: int64 (..., B, 2), row and column of the crop in the padded image, each in [0, 2 * padding]; (padding,
            padding) leaves the image in place.
        flip: bool (..., B), left-right after the crop.
        padding: pixels.

    Returns:
        A tensor like x, channels-last if x is.

    Raises:
        ValueError: shapes, dtypes or values other than these.
    """
    _check_augment(x, shift, flip, padding)
    height, width = x.shape[-2:]
    rows_last = x.movedim(-3, -1)  # (..., B, H, W, C): contiguous when x is channels-last
    padded = F.pad(rows_last.flatten(0, -4), (0, 0, padding, padding, padding, padding))
    images, tall, wide, channels = padded.shape
    shift, flip = shift.reshape(-1, 2), flip.reshape(-1, 1)
    column = torch.arange(width, device=x.device)
    columns = torch.where(flip, width - 1 - column, column) + shift[:, 1:]  # (images, W)
    first_row = torch.arange(0, images * tall, tall, device=x.device)[:, None] + shift[:, :1]
    rows = first_row + torch.arange(height, device=x.device)  # (images, H), counted through all padded images
    pixel = (rows[:, :, None] * wide + columns[:, None, :]).reshape(-1)
    out = padded.reshape(-1, channels).index_select(0, pixel).reshape(rows_last.shape).movedim(-1, -3)
    return out if rows_last.is_contiguous() else out.contiguous()


def distort(x: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Another view of each image, as contrastive learning wants them: a box of it at full size, colours changed.

    Colours, with grey the mean over the channels of a pixel and mean that over the image:

        x <- grey + s (x - grey),  x <- mean + c (x - mean) + b

    Pure, as `augment` is.

    Args:
        x: float (..., B, C, H, W).
        view: (..., B, 7), for each image the centre (row, column) and the size (height, width) of the box, in a frame
            that runs from -1 to 1 (sizes: shares of the image), then brightness b, contrast c and saturation s;
            (0, 0, 1, 1, 0, 1, 1) changes nothing.

    Raises:
        ValueError: other shapes.
    """
    batch = tuple(x.shape[:-3])
    if x.ndim < 4 or not x.is_floating_point() or tuple(view.shape) != (*batch, 7):
        raise ValueError(
            f"x must be float (..., B, C, H, W) and view (..., B, 7); got {x.dtype} of shape "
            f"{tuple(x.shape)} and view of shape {tuple(view.shape)}"
        )
    images = x.flatten(0, -4)
    row, column, height, width, brightness, contrast, saturation = view.reshape(-1, 7).to(x.dtype).unbind(1)
    zero = torch.zeros_like(row)
    box = torch.stack([width, zero, column, zero, height, row], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(box, list(images.shape), align_corners=False)
    out = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (v.view(-1, 1, 1, 1) for v in (brightness, contrast, saturation))
    grey = out.mean(1, keepdim=True)
    out = grey + saturation * (out - grey)
    mean = out.mean((1, 2, 3), keepdim=True)
    return (mean + contrast * (out - mean) + brightness).view(x.shape)


def random_views(
    rng: np.random.Generator, shape: Sequence[int], smallest: float = 0.2, colour: float = 0.4
) -> np.ndarray:
    """float32 `(*shape, 7)`, what `distort` takes, drawn as SimCLR does (arXiv 2002.05709, appendix A).

    The box holds a share of the image's area between `smallest` and 1, its sides in a ratio between 3/4 and 4/3 (closer
    to 1 where it would not fit), and lies inside the image. Brightness within colour/2 of 0, contrast and saturation
    within `colour` of 1; one view in five is grey. SimCLR starts at a share of 0.08 of images of 224 pixels, and blurs
    them besides.
    """
    area, ratio = rng.uniform(smallest, 1, shape), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), shape))
    ratio = np.clip(ratio, area, 1 / area)
    size = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], -1)
    centre = rng.uniform(-1, 1, size.shape) * (1 - size)
    brightness, contrast, saturation = rng.uniform(-colour, colour, (3, *shape))
    saturation = np.where(rng.random(shape) < 0.2, 0, 1 + saturation)
    colours = np.stack([brightness / 2, 1 + contrast, saturation], -1)
    return np.concatenate([centre, size, colours], -1).astype(np.float32)


def _check_augment(x: torch.Tensor, shift: torch.Tensor, flip: torch.Tensor, padding: int) -> None:
    if padding < 0:
        raise ValueError(f"padding must be 0 or more pixels, got {padding}")
    if x.ndim < 4:
        raise ValueError(f"x must have shape (..., B, C, H, W), got {tuple(x.shape)}")
    batch = tuple(x.shape[:-3])
    if tuple(shift.shape) != (*batch, 2) or shift.dtype != torch.int64:
        raise ValueError(f"shift must be int64 of shape {(*batch, 2)}, got {shift.dtype} of shape {tuple(shift.shape)}")
    if tuple(flip.shape) != batch or flip.dtype != torch.bool:
        raise ValueError(f"flip must be bool of shape {batch}, got {flip.dtype} of shape {tuple(flip.shape)}")
    if shift.device.type == "cpu" and shift.numel() and not 0 <= int(shift.min()) <= int(shift.max()) <= 2 * padding:
        raise ValueError(
            f"shift must lie in [0, {2 * padding}] (twice the padding), got values "
            f"{int(shift.min())}..{int(shift.max())}"
        )


# --- Loading --------------------------------------------------------------------------------------------------------

LOADERS: dict[str, Callable[..., Data]] = {}  # name -> function (root, download, **options) -> data set


def register(name: str) -> Callable:
    """Decorator: make a function `(root: Path, download: bool, **options) -> Data` known to `load` as `name`."""

    def add(loader):
        LOADERS[name] = loader
        return loader

    return add


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder data sets live in: `root`, else $FEDLIB_DATA, else ~/.cache/fedlib; ~ and $NAME are filled in.

    Where the system knows no home, as in a container with any user's number, the last is a folder for temporary files.

    Raises:
        ValueError: a `root` or $FEDLIB_DATA whose ~ stands for no home that is known.
    """
    if root:
        return _expanded("root", root)
    if chosen := os.environ.get("FEDLIB_DATA"):
        return _expanded("FEDLIB_DATA", chosen)
    try:
        return Path("~/.cache/fedlib").expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir(), "fedlib")


def _expanded(what: str, path: str | os.PathLike) -> Path:
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{what}={str(path)!r}: no home is known for its ~; give the whole path") from error


def load(name: str | os.PathLike, root: str | os.PathLike | None = None, download: bool = True, **options) -> Data:
    """Load a data set by name, or any `.npz` file by its path.

    A file <root>/<name>.npz is used as it is; else the originals are looked for below root, fetched if download is
    true, decoded once and kept as that file. What is fetched is kept only if it is whole and what was wanted.

    Args:
        name: one of `fedlib.data.LOADERS` (digits, mnist, fashion_mnist, usps, svhn, cifar10, cifar100; with several
            domains digit_domains, digits_five, office_caltech_10, pacs, domainnet; the texts shakespeare_excerpt,
            tiny_shakespeare, shakespeare_roles), or the path of an `.npz` file with x_train, y_train, x_test, y_test as
            `from_arrays` takes them (option: `classes`, their names); looked for in `root`, too, if that is given.
        root: where data sets live, by default $FEDLIB_DATA or ~/.cache/fedlib; see `data_root`.
        download: fetch what is not there.
        options: of that data set.

    Raises:
        ValueError: an unknown name, or a damaged file.
        FileNotFoundError: something is missing, with download=False.
        OSError: a failed download.
        TypeError: an option that the data set does not take.
    """
    name = str(name)
    if name.lower().endswith(".npz"):
        path = _expanded("name", name)
        places = [data_root(root) / path, path] if root else [path]  # twice the same, if it is absolute
        path = next((place for place in places if place.is_file()), places[0])
        return _call(functools.partial(read_npz, path), f"a data set from {path}", options)
    if name not in LOADERS:
        raise ValueError(
            f"unknown data set {name!r}.{checks.hint(name, LOADERS)} There are: {', '.join(LOADERS)}, or the path "
            f"of an .npz file with {', '.join(KEYS)}"
        )
    return _call(functools.partial(LOADERS[name], data_root(root), download), name, options)


def _call(loader: Callable[..., Data], name: str, options: dict) -> Data:
    try:
        inspect.signature(loader).bind(**options)
    except TypeError:
        known = [p.name for p in inspect.signature(loader).parameters.values() if p.name not in ("root", "download")]
        raise TypeError(
            f"{name} takes {'the options ' + ', '.join(known) if known else 'no options'}, got {', '.join(options)}"
        ) from None
    return loader(**options)


def read_npz(path: str | os.PathLike, *, classes: Sequence[str] | None = None) -> Data:
    """Read and check an `.npz` file with x_train, y_train, x_test, y_test; see `from_arrays`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, pickled or lacks an array; the file and the key at fault are named.
    """
    path = Path(path)
    arrays = read_archive(path, KEYS)
    try:
        return from_arrays(path.stem, **arrays, classes=classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_archive(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The arrays `keys` of an `.npz` file, without unpickling; errors as for `read_npz`."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}")
    arrays, there, key = {}, [], None
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an .npz archive")
        with archive:
            there = archive.files
            for key in keys:
                arrays[key] = archive[key]
    except KeyError as error:
        raise ValueError(
            f"{path}: no array {key!r}; it holds {', '.join(there) or 'nothing'} and must hold {', '.join(keys)}"
        ) from error
    except Exception as error:  # a damaged archive fails in many ways: BadZipFile, zlib.error, EOFError, ...
        where = f" (array {key!r})" if key else ""
        raise ValueError(
            f"{path}: cannot be read as an .npz file{where}: {error}. If it is a file that fedlib made, "
            f"delete it and load again"
        ) from error
    return arrays


@register("digits")
def _digits(root: Path, download: bool) -> Data:
    """The 1,797 digits (8x8) inside scikit-learn, split about 80/20 within each class, the same split for everyone."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the data set 'digits' comes with scikit-learn: pip install scikit-learn") from error
    pixels, y = map(np.asarray, load_digits(return_X_y=True))
    x = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(0)
    test = np.zeros(len(y), dtype=bool)
    for c in range(10):
        members = np.flatnonzero(y == c)
        test[rng.permutation(members)[: round(0.2 * len(members))]] = True
    return from_arrays("digits", x[~test], y[~test], x[test], y[test], classes=DIGITS)


# --- Public data sets -----------------------------------------------------------------------------------------------


def _idx_arrays(root: Path, download: bool, dataset: str) -> dict[str, np.ndarray]:
    """MNIST and its kin, from the IDX files in <root>/<dataset>/raw."""
    import torchvision.datasets

    source = getattr(torchvision.datasets, dataset)
    for file, md5 in source.resources:
        packed = root / dataset / "raw" / file
        unpacked = packed.with_suffix("")
        if (flaw := _idx_flaw(unpacked)) and not download:
            raise FileNotFoundError(flaw)
        elif flaw:
            have(packed, [mirror + file for mirror in source.mirrors], md5)
            with gzip.open(packed) as whole, replacing(unpacked) as part:
                part.write_bytes(whole.read())
    arrays = {}
    for split in ("train", "test"):
        found = source(str(root), train=split == "train", download=False)
        arrays |= {f"x_{split}": found.data.numpy(), f"y_{split}": found.targets.numpy()}
    return arrays


def _idx_flaw(path: Path) -> str:
    """What keeps `path` from being a whole IDX file of bytes: 0, 0, 8, number of dimensions, their sizes, the bytes."""
    if not path.is_file():
        return f"{path} is missing"
    with path.open("rb") as file:
        zero, dimensions = file.read(3), int.from_bytes(file.read(1), "big")
        told = 4 + 4 * dimensions + math.prod(int.from_bytes(file.read(4), "big") for _ in range(dimensions))
    if zero != b"\0\0\x08" or not dimensions:
        return f"{path} is damaged: it does not begin as an IDX file of bytes"
    size = path.stat().st_size
    return "" if size == told else f"{path} is damaged: it has {size:,} bytes, and its first ones promise {told:,}"


def _usps_arrays(root: Path, download: bool) -> dict[str, np.ndarray]:
    import torchvision.datasets

    source, arrays = torchvision.datasets.USPS, {}
    for split in ("train", "test"):
        url, file, md5 = source.split_list[split]
        have(root / file, [url], md5, download)
        found = source(str(root), train=split == "train", download=False)
        arrays |= {f"x_{split}": found.data, f"y_{split}": np.asarray(found.targets)}
    return arrays


def _svhn_arrays(root: Path, download: bool) -> dict[str, np.ndarray]:
    try:
        import scipy.io  # noqa: F401  torchvision reads the .mat files with it
    except ImportError as error:
        raise ImportError("the data set 'svhn' needs scipy to read .mat files: pip install scipy") from error
    import torchvision.datasets

    source, arrays = torchvision.datasets.SVHN, {}
    for split in ("train", "test"):
        url, file, md5 = source.split_list[split]
        have(root / file, [url], md5, download)
        found = source(str(root), split=split, download=False)
        arrays |= {f"x_{split}": found.data.transpose(0, 2, 3, 1), f"y_{split}": found.labels}
    return arrays


def _cifar_arrays(
    root: Path, download: bool, url: str, md5: str, train: Sequence[str], test: Sequence[str], label_bytes: int
) -> dict[str, np.ndarray]:
    """CIFAR from its authors' binary archive: records of 1 (or 2: coarse, fine) label bytes and 3x32x32 pixel bytes.

    torchvision's own CIFAR classes unpickle the Python version of the archive once its md5 fits. An md5 guards against
    accidents, not against intent, so the binary version, the same images in plain records, is used instead.
    """
    archive = root / url.rsplit("/", 1)[1]
    have(archive, [url], md5, download)
    arrays = {}
    try:
        with tarfile.open(archive) as tar:  # members are read in memory; nothing is extracted to disk
            for split, members in (("train", train), ("test", test)):
                raw = b"".join(cast(IO[bytes], tar.extractfile(member)).read() for member in members)
                records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, label_bytes + 3 * 32 * 32)
                arrays[f"x_{split}"] = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                arrays[f"y_{split}"] = records[:, label_bytes - 1]
    except Exception as error:  # ReadError, EOFError, KeyError of a member, a record too short ...
        raise ValueError(f"{archive}: {error}") from error
    return arrays


@dataclass(frozen=True)
class _Public:
    """A data set that others host: how to read it, and what to tell a reader who has to fetch it by hand."""

    read: Callable[[Path, bool], dict[str, np.ndarray]]
    url: str
    files: tuple[str, ...]  # below root
    classes: tuple[str, ...]


def _load_public(name: str, root: Path, download: bool) -> Data:
    public, cache = PUBLIC[name], root / f"{name}.npz"
    if cache.is_file():
        return dataclasses.replace(read_npz(cache, classes=public.classes), name=name)
    try:
        arrays = public.read(root, download)
    except ImportError:
        raise
    except Exception as error:  # RuntimeError, URLError, OSError, AssertionError ...: one remedy for all
        what = "could not be downloaded or read" if download else "is not here, or damaged, and download=False"
        raise (OSError if download else FileNotFoundError)(
            f"data set {name!r} {what} ({str(error).strip()}). To place it by hand, put {', '.join(public.files)} "
            f"from {public.url} into {root.absolute()}, or a file {name}.npz with {', '.join(KEYS)} (images uint8 "
            f"(N, H, W, C)). For another folder give root=... or set FEDLIB_DATA"
        ) from error
    arrays = {
        key: np.ascontiguousarray(array, dtype=np.uint8 if key.startswith("x") else np.int64)
        for key, array in arrays.items()
    }
    arrays = {key: array[..., None] if array.ndim == 3 else array for key, array in arrays.items()}
    data = from_arrays(name, **arrays, classes=public.classes)
    keep_archive(name, cache, arrays)
    return data


def keep_archive(name: str, cache: Path, arrays: dict[str, Any]) -> None:
    """Keep what was decoded as `cache`; where that cannot be, warn."""
    try:
        with replacing(cache) as part, open(part, "wb") as file:  # given a name, savez would put .npz behind it
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(
            f"{name} is loaded, but could not be kept as {cache} ({error}); it will be decoded again next time",
            stacklevel=3,
        )


DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
KRIZ = "https://www.cs.toronto.edu/~kriz/"

PUBLIC = {
    "mnist": _Public(
        functools.partial(_idx_arrays, dataset="MNIST"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        tuple(f"MNIST/raw/{file}" for file in IDX_FILES),
        DIGITS,
    ),
    "fashion_mnist": _Public(
        functools.partial(_idx_arrays, dataset="FashionMNIST"),
        "https://github.com/zalandoresearch/fashion-mnist",
        tuple(f"FashionMNIST/raw/{file}" for file in IDX_FILES),
        FASHION,
    ),
    "usps": _Public(
        _usps_arrays,
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
        ("usps.bz2", "usps.t.bz2"),
        DIGITS,
    ),
    "svhn": _Public(
        _svhn_arrays, "http://ufldl.stanford.edu/housenumbers/", ("train_32x32.mat", "test_32x32.mat"), DIGITS
    ),
    "cifar10": _Public(
        functools.partial(
            _cifar_arrays,
            url=KRIZ + "cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            train=[f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6)],
            test=["cifar-10-batches-bin/test_batch.bin"],
            label_bytes=1,
        ),
        KRIZ + "cifar.html",
        ("cifar-10-binary.tar.gz",),
        CIFAR10,
    ),
    "cifar100": _Public(
        functools.partial(
            _cifar_arrays,
            url=KRIZ + "cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            train=["cifar-100-binary/train.bin"],
            test=["cifar-100-binary/test.bin"],
            label_bytes=2,
        ),
        KRIZ + "cifar.html",
        ("cifar-100-binary.tar.gz",),
        CIFAR100,
    ),
}
for _name in PUBLIC:
    register(_name)(functools.partial(_load_public, _name))

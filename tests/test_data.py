import hashlib
import io
import os
import re
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fedlib import data
from fedlib.texts import from_texts

quick = settings(max_examples=30, derandomize=True, deadline=None)


def channels_last(x):
    return x.movedim(-3, -1).is_contiguous()


def arrays(n=12, m=6, shape=(5, 4, 3), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_train": np.arange(n) % classes,
        "x_test": rng.integers(0, 256, (m, *shape), dtype=np.uint8),
        "y_test": np.arange(m) % classes,
    }


def saved(path, **changes):
    """An .npz file of `arrays()` with some arrays replaced; None leaves an array out."""
    content = {k: v for k, v in (arrays() | changes).items() if v is not None}
    np.savez(path, **content)
    return path


# --- Data and from_arrays -------------------------------------------------------------------------------------------


def test_digits_needs_no_folder_and_is_always_the_same_split(tmp_path):
    d = data.load("digits", root=tmp_path, download=False)
    assert d.shape == (1, 8, 8) and d.num_classes == 10 and d.classes == tuple("0123456789")
    assert len(d.y_train) + len(d.y_test) == 1797 and len(d.y_test) == pytest.approx(0.2 * 1797, abs=5)
    assert d.x_train.dtype == torch.uint8 and int(d.x_train.max()) == 255 and d.y_train.dtype == torch.int64
    assert channels_last(d.x_train) and channels_last(d.x_test)
    for c in range(10):  # stratified: each class about 80/20
        n, m = int((d.y_train == c).sum()), int((d.y_test == c).sum())
        assert m == round(0.2 * (n + m))
    again = data.load("digits")
    assert all(torch.equal(getattr(d, k), getattr(again, k)) for k in data.KEYS)
    assert not any(tmp_path.iterdir())


def test_digits_holds_every_image_of_scikit_learn_once():
    from sklearn.datasets import load_digits

    d, bunch = data.load("digits"), load_digits()
    ours = torch.cat([d.x_train, d.x_test]).flatten(1).numpy()
    theirs = np.rint(bunch.images.reshape(1797, 64) * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_mean_and_std_are_those_of_the_training_images():
    content = arrays(n=2500, shape=(3, 4, 3))  # more than one block of the histogram
    d = data.from_arrays("tiny", **content)
    scaled = content["x_train"].astype(np.float64) / 255
    np.testing.assert_allclose(d.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(d.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_constant_channel_normalises_to_zero():
    content = arrays()
    content["x_train"][..., 1] = 200
    d = data.from_arrays("tiny", **content)
    assert d.std[1] == 1.0
    assert data.prepare(d.x_train, d.mean, d.std)[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize(
    "layout, shape",
    [("gray", (1, 5, 4)), ("channels last", (3, 5, 4)), ("channels first", (3, 5, 4)), ("gray last", (1, 5, 4))],
)
def test_from_arrays_takes_the_usual_layouts(layout, shape):
    content = arrays(shape=(5, 4, shape[0]))
    want = torch.from_numpy(content["x_train"].copy()).permute(0, 3, 1, 2)
    change = {"gray": lambda x: x[..., 0], "channels first": lambda x: x.transpose(0, 3, 1, 2)}.get(layout, lambda x: x)
    d = data.from_arrays("tiny", **{k: change(v) if k.startswith("x") else v for k, v in content.items()})
    assert d.shape == shape and channels_last(d.x_train) and channels_last(d.x_test)
    assert torch.equal(d.x_train, want)


def test_from_arrays_copies_what_is_read_only():
    content = arrays()
    for array in content.values():
        array.flags.writeable = False
    d = data.from_arrays("tiny", **content)
    d.x_train.zero_()
    assert content["x_train"].any()


def layouts(kind, x):
    """(container, what from_arrays is given): the same images in other memory."""
    if kind == "torch channels last":
        x = torch.from_numpy(x).permute(0, 3, 1, 2)
    elif kind == "torch":
        x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    elif kind == "channels first":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    elif kind == "every second":
        x = np.repeat(x, 2, axis=0)[::2]
    elif kind == "fortran":
        x = np.asfortranarray(x)
    return x


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(["plain", "torch", "torch channels last", "channels first", "every second", "fortran"]),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from(["int64", "uint8", "int32", ">i8"]),
    tensor=st.booleans(),
)
def test_a_data_set_owns_what_it_holds(kind, channels, dtype, tensor):
    """Whatever is done to the caller's arrays afterwards, and the other way round."""
    given = with_domains(**{k: v for k, v in arrays(shape=(5, 4, channels)).items()})
    for key, value in given.items():
        if key.startswith("x"):
            given[key] = layouts(kind, value)
        elif key != "domains":
            given[key] = value.astype(dtype)
            given[key] = torch.from_numpy(given[key]) if tensor and dtype != ">i8" else given[key]
    d = data.from_arrays("mine", **given)
    keys = data.KEYS + data.DOMAIN_KEYS
    before = {key: getattr(d, key).clone() for key in keys}
    for key in keys:
        given[key][:] = 1
    assert all(torch.equal(getattr(d, key), before[key]) for key in keys)
    for key in keys:
        getattr(d, key).zero_()
    assert all((given[key] == 1).all() for key in keys)


def test_images_are_copied_once(monkeypatch):
    """Arrays of another layout or dtype are new already when they have been converted."""
    made = []
    monkeypatch.setattr(data, "_own", lambda *a, own=data._own: made.append((own(*a), a[1])) or made[-1][0])
    content = arrays()
    content["x_train"], content["y_train"] = content["x_train"].transpose(0, 3, 1, 2), content["y_train"].astype("u1")
    content["x_train"] = np.ascontiguousarray(content["x_train"])
    d = data.from_arrays("mine", **content)
    for key, (kept, source) in zip(("x_train", "x_test", "y_train", "y_test"), made, strict=True):
        assert not np.shares_memory(kept, source) and kept.base is None, key
        assert np.shares_memory(kept, getattr(d, key).numpy())


# --- Ranges and labels ------------------------------------------------------------------------------------------------


def told(changes, **options):
    """What `from_arrays` warns of, or the error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            data.from_arrays("mine", **arrays(n=60, m=30, classes=5) | changes, **options)
        except ValueError as error:
            return "error: " + str(error)
    assert all(w.filename == __file__ for w in said)  # the warning points to who called
    return " | ".join(str(w.message) for w in said)


def pixels(low, high, n=60, seed=0):
    return np.random.default_rng(seed).integers(low, high + 1, (n, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "train, test, message",
    [
        (
            (0, 1),
            (0, 1),
            "x_train has pixel values 0..1, taken for nearly black, since 255 is white.*x_test has .* 0..1",
        ),
        ((0, 15), (0, 15), "x_train has pixel values 0..15, .*scale them to 0..255 before they are cast to uint8"),
        ((0, 16), (0, 16), "x_train has pixel values 0..16"),
        ((1, 4), (1, 4), "x_train has pixel values 1..4"),
        ((0, 255), (0, 16), "^mine: x_test has pixel values 0..16"),
        ((0, 16), (0, 255), "^mine: x_train has pixel values 0..16"),
        ((0, 255), (0, 1), "error: mine: x_test has pixel values 0..1, x_train 0..255; .*must have the same range"),
        ((0, 1), (0, 255), "error: mine: x_train has pixel values 0..1, x_test 0..255"),
    ],
)
def test_pixels_that_were_scaled_before_are_told(train, test, message):
    assert re.search(message, told({"x_train": pixels(*train), "x_test": pixels(*test, n=30)}))


def test_numbers_around_zero_are_told():
    with np.errstate(invalid="ignore"):
        around = np.random.default_rng(0).normal(size=(60, 5, 4, 3)).astype(np.int64).astype(np.uint8)
    assert re.search(
        r"x_train has only pixel values up to [23] and from 25\d, as numbers around 0", told({"x_train": around})
    )


@pytest.mark.parametrize(
    "train, test",
    [
        (pixels(0, 255), pixels(0, 255, n=30)),
        (pixels(0, 255) // 8, pixels(0, 255, n=30) // 8),  # dark
        (pixels(0, 40), pixels(100, 255, n=30)),
        (pixels(200, 255), pixels(200, 255, n=30)),
        (255 * pixels(0, 1), 255 * pixels(0, 1, n=30)),  # black and white
        (pixels(0, 0), pixels(0, 0, n=30)),
        (pixels(0, 255), pixels(0, 0, n=30)),
        (pixels(0, 255), pixels(0, 17, n=30)),
        (pixels(255, 255), pixels(0, 255, n=30)),
    ],
)
def test_ordinary_pixels_are_no_cause_for_alarm(train, test):
    assert told({"x_train": train, "x_test": test}) == ""


@pytest.mark.parametrize(
    "train, test, message",
    [
        (
            range(1, 11),
            range(1, 11),
            "^mine: y_train has labels 1..10, taken for 11 classes, of which 0 have no training",
        ),
        ((10, 20, 30), (10, 20, 30), "has labels 10, 20, 30, taken for 31 classes, of which 0, 1, 2, .*, ... have no"),
        ((0, 1, 3), (0, 1, 3), "taken for 4 classes, of which 2 have no training image. Number"),
        ((0, 1, 3), (0, 1, 2), r"taken for 4 classes, of which 2 have no training image \(y_test has 2\)"),
        (
            range(1, 11),
            range(10),
            "error: mine: y_train has labels 1..10, y_test 0..9: a class must have the same number",
        ),
        (range(1, 11), (0, 3, 9), "error: mine: y_train has labels 1..10, y_test 0, 3, 9: a class must have the same"),
        ((0, 2, 4), (1, 3), "error: mine: y_train has labels 0, 2, 4, y_test 1, 3"),
        (range(10), range(1, 11), "error: mine: y_test has label 10, out of range: 10 classes take labels 0..9"),
        ((0, -1), (0, 1), "error: mine: y_train has label -1, out of range: labels start at 0"),
    ],
)
def test_labels_that_do_not_count_from_zero_are_told(train, test, message):
    assert re.search(message, told({"y_train": np.resize(list(train), 60), "y_test": np.resize(list(test), 30)}))


@quick
@given(classes=st.integers(1, 12), shift=st.integers(-3, 3), data_=st.data())
def test_labels_shifted_against_each_other_never_pass_unseen(classes, shift, data_):
    y_train = np.resize(np.arange(classes) + max(0, shift), 60)
    y_test = np.resize(np.arange(classes) + max(0, -shift), 30)
    said = told({"y_train": y_train, "y_test": y_test})
    assert said.startswith("error") if shift else said == ""


def test_a_subset_of_named_classes_is_no_cause_for_alarm():
    for train, test in (((1, 3), (1, 3)), ((3,), (0, 1, 2, 3, 4)), ((0, 1, 2), (3, 4))):
        labels = {"y_train": np.resize(train, 60), "y_test": np.resize(test, 30)}
        assert told(labels, classes=list("abcde")) == ""
    assert told({}) == ""
    assert told({"y_test": np.resize([1, 3], 30)}) == ""  # not every class need be in the test


def test_repr_and_to():
    d = data.from_arrays("tiny", **arrays(), classes=["cat", "dog", "owl"])
    assert repr(d) == ("Data('tiny': 12 training and 6 test images, 3x5x4 uint8 on cpu; 3 classes: cat, dog, owl)")
    moved = d.to("meta")
    assert moved.x_train.device.type == moved.y_test.device.type == "meta" and channels_last(moved.x_train)
    assert (moved.name, moved.classes, moved.mean) == (d.name, d.classes, d.mean)
    with pytest.raises(AttributeError):
        d.name = "other"


# --- prepare --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(7,), (2, 3), ()])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepare_scales_and_normalises(lead, channels, last, dtype):
    x = torch.randint(0, 256, (*lead, 6, 5, channels), dtype=torch.uint8).movedim(-1, -3)
    x = x if last else x.contiguous()
    plain = data.prepare(x, dtype=dtype)
    torch.testing.assert_close(plain, x.to(dtype) / 255)
    mean, std = (0.1, 0.2, 0.3)[:channels], (0.5, 0.6, 0.7)[:channels]
    normal = data.prepare(x, mean, std, dtype)
    m, s = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (mean, std))
    torch.testing.assert_close(normal, (x.to(dtype) / 255 - m) / s)
    torch.testing.assert_close(data.prepare(x, mean=mean, dtype=dtype), x.to(dtype) / 255 - m)
    torch.testing.assert_close(data.prepare(x, std=std, dtype=dtype), x.to(dtype) / 255 / s)
    assert plain.stride() == x.stride() and normal.stride() == x.stride() and normal.dtype == dtype


def test_prepare_constants_made_in_inference_mode_can_be_trained_with():
    x = torch.randint(0, 256, (2, 1, 3, 3), dtype=torch.uint8)
    with torch.inference_mode():
        data.prepare(x, (0.123,), (0.456,))
    weight = torch.ones(1, requires_grad=True)
    (data.prepare(x, (0.123,), (0.456,)) * weight).sum().backward()
    assert weight.grad.isfinite()


def test_prepare_refuses():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="x_uint8 must be uint8 .*got torch.float32"):
        data.prepare(x.float())
    with pytest.raises(ValueError, match="one value for each of 3 channels"):
        data.prepare(x, (0.5,), (0.5,))
    for std in [(0.5, 0.0, 0.5), (0.5, float("nan"), 0.5)]:
        with pytest.raises(ValueError, match="std finite and positive"):
            data.prepare(x, (0.5,) * 3, std)


# --- augment --------------------------------------------------------------------------------------------------------


def augment_reference(x, shift, flip, padding):
    """Pixel by pixel: out[i, j] = image[i + row - padding, j + column - padding] or 0; then mirrored."""
    flat, out = x.reshape(-1, *x.shape[-3:]), torch.zeros_like(x).reshape(-1, *x.shape[-3:])
    height, width = x.shape[-2:]
    draws = zip(shift.reshape(-1, 2).tolist(), flip.flatten().tolist(), strict=True)
    for b, ((row, column), mirror) in enumerate(draws):
        for i in range(height):
            for j in range(width):
                u, v = i + row - padding, j + column - padding
                if 0 <= u < height and 0 <= v < width:
                    out[b, :, i, width - 1 - j if mirror else j] = flat[b, :, u, v]
    return out.reshape(x.shape)


@quick
@given(
    lead=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 4),
    last=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_augment_equals_a_plain_loop(lead, channels, height, width, padding, last, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (*lead, height, width, channels), generator=draw).to(dtype).movedim(-1, -3)
    x = x if last else x.contiguous()
    before = x.clone()
    shift = torch.randint(0, 2 * padding + 1, (*lead, 2), generator=draw)
    flip = torch.rand(lead, generator=draw) < 0.5
    out = data.augment(x, shift, flip, padding)
    assert out.dtype == dtype and torch.equal(out, augment_reference(x, shift, flip, padding))
    assert channels_last(out) if channels_last(x) else out.is_contiguous()
    assert torch.equal(x, before)


def test_augment_in_place_and_mirror():
    x = torch.rand(2, 3, 8, 8)
    centre = torch.full((2, 2), 4)
    assert torch.equal(data.augment(x, centre, torch.tensor([False, False])), x)
    assert torch.equal(data.augment(x, centre, torch.tensor([True, True])), x.flip(-1))


def test_augment_of_a_batch_within_a_cohort_is_augment_of_the_batch():
    x = torch.rand(4, 5, 6, 6, 3).movedim(-1, -3)
    shift, flip = torch.randint(0, 9, (4, 5, 2)), torch.rand(4, 5) < 0.5
    whole = data.augment(x, shift, flip)
    assert all(torch.equal(whole[k], data.augment(x[k], shift[k], flip[k])) for k in range(4))


def test_augment_gives_gradients_to_the_pixels_it_shows():
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    data.augment(x, torch.tensor([[0, 2]]), torch.tensor([False]), padding=2).sum().backward()
    want = torch.zeros(4, 4)
    want[:2] = 1  # shifted down by two: the lower two rows fell out
    assert torch.equal(x.grad[0, 0], want)


class Operations(TorchDispatchMode):
    """Counts the operations that compute something (views do not)."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_augment_is_a_handful_of_kernels_and_never_waits_for_values():
    """On a GPU the cost is kernel launches. Meta tensors have no values, so any use of one by Python would raise."""
    x = torch.zeros(10, 32, 32, 32, 3, dtype=torch.uint8, device="meta").movedim(-1, -3)
    shift = torch.zeros(10, 32, 2, dtype=torch.int64, device="meta")
    flip = torch.zeros(10, 32, dtype=torch.bool, device="meta")
    with Operations() as done:
        out = data.augment(x, shift, flip)
    assert out.shape == x.shape and channels_last(out)
    assert len(done.names) <= 12, done.names


def test_augment_refuses():
    x, shift, flip = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    for wrong in [shift.float(), shift[:1], shift[0], torch.zeros(3, 2, dtype=torch.int64)]:
        with pytest.raises(ValueError, match=r"shift must be int64 of shape \(2, 2\)"):
            data.augment(x, wrong, flip)
    for wrong in [flip.long(), flip[:1], flip[:, None]]:
        with pytest.raises(ValueError, match=r"flip must be bool of shape \(2,\)"):
            data.augment(x, shift, wrong)
    for value in (-1, 9):
        with pytest.raises(ValueError, match=r"shift must lie in \[0, 8\]"):
            data.augment(x, shift + value, flip)
    with pytest.raises(ValueError, match="padding must be 0 or more"):
        data.augment(x, shift, flip, padding=-1)
    with pytest.raises(ValueError, match="x must have shape"):
        data.augment(x[0], shift[0], flip[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_augment_and_prepare_in_a_cuda_graph():
    x = torch.randint(0, 256, (4, 8, 16, 16, 3), dtype=torch.uint8, device="cuda").movedim(-1, -3)
    shift, flip = torch.randint(0, 9, (4, 8, 2), device="cuda"), torch.rand(4, 8, device="cuda") < 0.5

    def batch():
        return data.prepare(data.augment(x, shift, flip), (0.5,) * 3, (0.2,) * 3)

    batch()  # the first call copies mean and std to the device
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = batch()
    shift.random_(0, 9)
    flip.logical_not_()
    graph.replay()
    want = data.prepare(augment_reference(x.cpu(), shift.cpu(), flip.cpu(), 4), (0.5,) * 3, (0.2,) * 3)
    torch.testing.assert_close(out.cpu(), want)


# --- distort and random_views --------------------------------------------------------------------------------------

UNCHANGED = torch.tensor([0.0, 0, 1, 1, 0, 1, 1])


def distort_reference(image, row, column, height, width, brightness, contrast, saturation):
    """One image (C, H, W), pixel by pixel: bilinear between the four around the point, edges repeated outwards."""
    channels, H, W = image.shape
    out = np.empty_like(image)
    for i in range(H):
        for j in range(W):
            y = ((row + height * ((2 * i + 1) / H - 1) + 1) * H - 1) / 2
            x = ((column + width * ((2 * j + 1) / W - 1) + 1) * W - 1) / 2
            y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
            a, b = int(y), int(x)
            c, d = min(a + 1, H - 1), min(b + 1, W - 1)
            out[:, i, j] = (1 - (y - a)) * ((1 - (x - b)) * image[:, a, b] + (x - b) * image[:, a, d]) + (y - a) * (
                (1 - (x - b)) * image[:, c, b] + (x - b) * image[:, c, d]
            )
    for i in range(H):
        for j in range(W):
            grey = out[:, i, j].sum() / channels
            out[:, i, j] = grey + saturation * (out[:, i, j] - grey)
    mean = out.sum() / out.size
    return mean + contrast * (out - mean) + brightness


@pytest.mark.parametrize("channels, height, width, last", [(3, 8, 8, True), (3, 5, 7, False), (1, 6, 4, True)])
def test_distort_equals_a_plain_loop(channels, height, width, last):
    rng = np.random.default_rng(height)
    x, view = torch.from_numpy(rng.random((6, channels, height, width))), data.random_views(rng, (6,))
    given = x.contiguous(memory_format=torch.channels_last) if last else x
    out = data.distort(given, torch.from_numpy(view)).numpy()
    for image, how, got in zip(x.numpy(), view.astype(float), out, strict=True):
        np.testing.assert_allclose(got, distort_reference(image, *how), atol=1e-12)


def test_distort_with_the_view_that_changes_nothing():
    x = torch.rand(4, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(data.distort(x, UNCHANGED.expand(4, 7)), x, rtol=0, atol=1e-6)


def test_distort_to_half_the_size_is_torchvisions_resized_crop():
    """Inside: at its border a crop knows nothing of the pixels beyond."""
    from torchvision.transforms import functional as TF

    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = UNCHANGED.clone()
    for row, column in ((0, 0), (-0.5, 0.5), (0.25, -0.125)):  # of the centre; the crop begins at pixel 4 + 8 row
        view[:4] = torch.tensor([row, column, 0.5, 0.5])
        theirs = TF.resized_crop(x, int(4 + 8 * row), int(4 + 8 * column), 8, 8, [16, 16], antialias=False)
        ours = data.distort(x, view[None])
        torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1])


def test_distort_never_mirrors():
    ramp = torch.arange(8.0).expand(5, 1, 8, 8) + 10 * torch.arange(8.0)[:, None]
    view = torch.from_numpy(data.random_views(np.random.default_rng(0), (5,), colour=0.0))
    out = data.distort(ramp, view)
    assert (out.diff(dim=-1) >= 0).all() and (out.diff(dim=-2) >= 0).all()


def test_distort_of_a_batch_within_a_cohort_is_distort_of_the_batch():
    x = torch.rand(3, 4, 8, 8, 3, generator=torch.Generator().manual_seed(0)).movedim(-1, -3)
    view = torch.from_numpy(data.random_views(np.random.default_rng(0), (3, 4)))
    whole = data.distort(x, view)
    assert whole.shape == x.shape
    for k in range(3):
        torch.testing.assert_close(whole[k], data.distort(x[k], view[k]))


@pytest.mark.parametrize("smallest, colour", [(0.08, 0.8), (0.2, 0.4), (0.9, 0.0), (1.0, 1.0)])
def test_random_views_lie_in_their_ranges_and_fill_them(smallest, colour):
    views = data.random_views(np.random.default_rng(0), (20, 300), smallest, colour)
    assert views.shape == (20, 300, 7) and views.dtype == np.float32
    row, column, height, width, brightness, contrast, saturation = np.moveaxis(views.astype(float), -1, 0)
    area, ratio, edge = height * width, width / height, 1e-6
    assert (np.abs(row) + height).max() <= 1 + edge and (np.abs(column) + width).max() <= 1 + edge
    assert smallest - edge <= area.min() <= smallest + 0.01 and 1 - 0.01 <= area.max() <= 1 + edge
    assert 3 / 4 - edge <= ratio.min() and ratio.max() <= 4 / 3 + edge
    if smallest < 0.5:
        assert ratio.min() < 0.76 and ratio.max() > 1.32 and abs(np.log(ratio).mean()) < 0.02
        assert abs(area.mean() - (1 + smallest) / 2) < 0.02
        assert np.corrcoef(row.ravel(), column.ravel())[0, 1] == pytest.approx(0, abs=0.05)
    grey = saturation == 0
    assert abs(grey.mean() - 0.2) < 0.03
    for value, centre, reach in ((brightness, 0, colour / 2), (contrast, 1, colour), (saturation[~grey], 1, colour)):
        assert np.abs(value - centre).max() == pytest.approx(reach, abs=0.01) and abs(value.mean() - centre) < 0.03


def test_random_views_repeat_with_their_generator():
    one, same, other = (data.random_views(np.random.default_rng(seed), (4,)) for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


def test_distort_refuses():
    x, view = torch.rand(4, 3, 8, 8), UNCHANGED.expand(4, 7)
    for wrong_x, wrong_view in (
        (x[0], view),
        ((255 * x).byte(), view),
        (x, view[:3]),
        (x, view[:, :6]),
        (x[None], view),
        (x, view[0]),
    ):
        with pytest.raises(ValueError, match=r"x must be float \(..., B, C, H, W\) and view \(..., B, 7\); got torch"):
            data.distort(wrong_x, wrong_view)


# --- load: names, paths, options ------------------------------------------------------------------------------------


def test_unknown_name_lists_what_exists_and_suggests():
    with pytest.raises(ValueError, match="unknown data set 'cifer10'. Did you mean 'cifar10'") as error:
        data.load("cifer10")
    assert all(name in str(error.value) for name in data.LOADERS)
    with pytest.raises(ValueError, match="Did you mean 'fashion_mnist'"):
        data.load("Fashion-MNIST")
    with pytest.raises(ValueError, match="unknown data set 'qqq'. There are: digits"):
        data.load("qqq")


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="digits takes no options, got size"):
        data.load("digits", size=3)
    with pytest.raises(TypeError, match="takes the options classes, got klasses"):
        data.load("my.npz", klasses=3)


def test_root_comes_from_the_argument_then_the_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDLIB_DATA", str(tmp_path / "env"))
    assert data.data_root(tmp_path) == tmp_path and data.data_root() == tmp_path / "env"
    monkeypatch.delenv("FEDLIB_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.data_root() == tmp_path / ".cache" / "fedlib"
    monkeypatch.setenv("FEDLIB_DATA", "")
    assert data.data_root() == data.data_root("") == tmp_path / ".cache" / "fedlib"


def test_home_and_variables_are_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    saved(tmp_path / "mine.npz")
    for written, meant in (("~/d", "d"), ("$HOME/d", "d"), ("${DISK}/d", "disk/d"), (Path("~") / "d", "d")):
        monkeypatch.setenv("FEDLIB_DATA", str(written))
        assert data.data_root() == data.data_root(written) == tmp_path / meant
    for written in ("~/mine.npz", "$HOME/mine.npz"):
        assert data.load(written).name == "mine"
    assert data.data_root("$NOBODY_SET_THIS") == Path("$NOBODY_SET_THIS")  # a folder may be called so


def test_without_a_home(monkeypatch, tmp_path):
    """As in a container with any user's number: Path.expanduser finds neither $HOME nor an entry for the user."""

    def expanduser(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("FEDLIB_DATA", raising=False)
    monkeypatch.setattr(Path, "expanduser", expanduser)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(data.load("digits").y_train) == 1438 and data.data_root() == tmp_path / "fedlib"
    assert data.data_root(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="root='~/d': no home is known for its ~"):
        data.load("mnist", root="~/d")
    with pytest.raises(ValueError, match="name='~/x.npz': no home is known for its ~"):
        data.load("~/x.npz")
    monkeypatch.setenv("FEDLIB_DATA", "~/d")
    with pytest.raises(ValueError, match="FEDLIB_DATA='~/d': no home is known"):
        data.data_root()


def test_an_npz_file_is_looked_for_in_root_too(monkeypatch, tmp_path):
    here, root = tmp_path / "here", tmp_path / "root"
    for folder in (here, root / "below"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    saved(root / "mine.npz", x_train=pixels(0, 100, n=12))
    saved(root / "below" / "LOUD.NPZ.npz")
    (root / "below" / "LOUD.NPZ.npz").rename(root / "below" / "LOUD.NPZ")
    assert data.load("mine.npz", root=root).name == "mine"
    assert data.load("below/LOUD.NPZ", root=root).name == data.load(root / "below" / "LOUD.NPZ").name == "LOUD"
    saved(here / "mine.npz")
    assert int(data.load("mine.npz", root=root).x_train.max()) == 100  # root comes first
    assert int(data.load("mine.npz").x_train.max()) > 200
    saved(here / "other.npz")
    assert data.load("other.npz", root=root).name == data.load(here / "other.npz", root=root).name == "other"
    with pytest.raises(FileNotFoundError, match=f"no file {re.escape(str(root / 'absent.npz'))}"):
        data.load("absent.npz", root=root)


def test_register_makes_a_name_known(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "LOADERS", dict(data.LOADERS))

    @data.register("tiny")
    def tiny(root, download, size=5):
        assert root == tmp_path and download is False
        return size

    assert data.load("tiny", root=tmp_path, download=False) == 5
    assert data.load("tiny", root=tmp_path, download=False, size=7) == 7
    with pytest.raises(TypeError, match="tiny takes the options size, got sise"):
        data.load("tiny", root=tmp_path, sise=7)


def test_own_npz_file(tmp_path):
    path = saved(tmp_path / "mine.npz")
    d = data.load(path)
    assert (d.name, d.shape, d.classes) == ("mine", (3, 5, 4), ("0", "1", "2"))
    assert torch.equal(d.x_train.permute(0, 2, 3, 1), torch.from_numpy(arrays()["x_train"]))
    assert data.load(str(path), classes=("cat", "dog", "owl")).classes == ("cat", "dog", "owl")


class Payload:
    """Unpickling this would make a file; nothing here may ever do so."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_arrays_are_refused_unread(tmp_path):
    trap = tmp_path / "trap"
    path = tmp_path / "evil.npz"
    np.savez(path, **arrays() | {"x_train": np.array([Payload(trap)], dtype=object)}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil.npz: cannot be read .*\(array 'x_train'\)"):
        data.load(path)
    assert not trap.exists()


X, Y = arrays()["x_train"], arrays()["y_train"]
NAN = np.where(np.arange(12) == 3, np.nan, Y)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"y_test": None}, "no array 'y_test'; it holds x_train, y_train, x_test and must hold"),
        ({"x_train": X.astype(np.float32)}, r"x_train must be uint8 .*found float32 of shape \(12, 5, 4, 3\)"),
        ({"x_train": np.where(X == X[0, 0, 0, 0], np.nan, X)}, "x_train must be uint8.* values that are NaN"),
        ({"x_train": X[..., :2]}, r"x_train must have shape .*found \(12, 5, 4, 2\)"),
        ({"x_test": X[0, 0]}, r"x_test must have shape .*found \(4, 3\)"),
        ({"x_test": X[:0], "y_test": Y[:0]}, r"x_test must have shape .*no empty dimension, found \(0, 5, 4, 3\)"),
        ({"x_train": X[:, :4]}, r"x_train holds images of \(H, W, C\) = \(4, 4, 3\), x_test of \(5, 4, 3\)"),
        ({"y_train": Y.astype(np.float64)}, "y_train must be a 1-D array of integers, found float64"),
        ({"y_train": NAN}, "y_train must be .* found float64 .*with 1 values that are NaN"),
        ({"y_train": Y[:, None]}, r"y_train must be a 1-D array of integers, found int64 of shape \(12, 1\)"),
        ({"y_train": Y[:11]}, "y_train has 11 labels but x_train has 12 images"),
        ({"y_test": np.arange(6) - 1}, "y_test has label -1, out of range"),
        ({"y_test": np.arange(6)}, "y_test has label 5, out of range: 3 classes take labels 0..2"),
        ({"y_train": Y + 10**6}, "y_train has label 1000002 but only 12 images"),
    ],
)
def test_a_bad_array_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        data.load(saved(tmp_path / "mine.npz", **change))
    assert str(tmp_path / "mine.npz") in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    whole = saved(tmp_path / "mine.npz").read_bytes()
    for damage in [whole[: len(whole) // 2], b"", b"not a zip", whole[:200] + b"\0" * 100 + whole[300:]]:
        (tmp_path / "mine.npz").write_bytes(damage)
        with pytest.raises(ValueError, match="mine.npz: cannot be read as an .npz file"):
            data.load(tmp_path / "mine.npz")
    with open(tmp_path / "mine.npz", "wb") as file:
        np.save(file, X)
    with pytest.raises(ValueError, match="a single array, not an .npz archive"):
        data.load(tmp_path / "mine.npz")
    with pytest.raises(FileNotFoundError, match="no file .*absent.npz"):
        data.load(tmp_path / "absent.npz")


# --- load: public data sets -----------------------------------------------------------------------------------------


class FakeMNIST:
    """Stands in for torchvision.datasets.MNIST."""

    calls: list = []
    resources: list = []

    def __init__(self, root, train, download):
        self.calls.append((root, train, download))
        rng = np.random.default_rng(int(train))
        n = 30 if train else 10
        self.data = torch.from_numpy(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        self.targets = torch.arange(n) % 10


def failing(error):
    class Failing:
        resources = ()
        split_list = dict.fromkeys(("train", "test"), ("https://a/f", "f", hashlib.md5(b"").hexdigest()))

        def __init__(self, *_, **__):
            raise error

    return Failing


def test_public_set_is_decoded_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("torchvision.datasets.MNIST", FakeMNIST)
    monkeypatch.setattr(FakeMNIST, "calls", [])
    root = tmp_path / "new" / "folder"
    first = data.load("mnist", root=root)
    assert FakeMNIST.calls == [(str(root), True, False), (str(root), False, False)]
    assert [p.name for p in root.iterdir()] == ["mnist.npz"]  # no temporary file is left
    second = data.load("mnist", root=root, download=False)
    assert len(FakeMNIST.calls) == 2
    assert first.name == second.name == "mnist" and second.shape == (1, 28, 28) and second.classes == first.classes
    assert all(torch.equal(getattr(first, k), getattr(second, k)) for k in data.KEYS)
    with np.load(root / "mnist.npz", allow_pickle=False) as kept:
        assert kept["x_train"].shape == (30, 28, 28, 1) and kept["x_train"].dtype == np.uint8
        assert kept["y_test"].dtype == np.int64


def test_svhn_and_usps_are_turned_into_the_same_form(monkeypatch, tmp_path):
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)

    class SVHN:
        split_list = {split: (f"https://a/{split}", split, "") for split in ("train", "test")}

        def __init__(self, root, split, download):
            n = {"train": 20, "test": 10}[split]
            self.data, self.labels = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 10

    class USPS:
        split_list = SVHN.split_list

        def __init__(self, root, train, download):
            n = 20 if train else 10
            self.data, self.targets = rng.integers(0, 256, (n, 16, 16), dtype=np.uint8), [k % 10 for k in range(n)]

    fetched = []
    monkeypatch.setattr("torchvision.datasets.SVHN", SVHN)
    monkeypatch.setattr("torchvision.datasets.USPS", USPS)
    monkeypatch.setattr(data, "have", lambda *a: fetched.append(a))
    assert data.load("svhn", root=tmp_path).shape == (3, 32, 32)
    assert data.load("usps", root=tmp_path).shape == (1, 16, 16)
    assert fetched == 2 * [(tmp_path / s, [f"https://a/{s}"], "", True) for s in ("train", "test")]


def cifar_archive(root, label_bytes):
    """A small archive in the authors' binary format; returns reader arguments and the images and labels in it."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8), rng.permutation(20) % 10
    labels = np.stack([np.full(20, 99), y], axis=1)[:, -label_bytes:].astype(np.uint8)  # coarse label first
    records = np.concatenate([labels, x.reshape(20, -1)], axis=1)
    with tarfile.open(root / "c.tar.gz", "w:gz") as tar:
        for name, rows in (("a.bin", records[:8]), ("b.bin", records[8:15]), ("t.bin", records[15:])):
            info = tarfile.TarInfo(f"c/{name}")
            info.size = rows.size
            tar.addfile(info, io.BytesIO(rows.tobytes()))
    from torchvision.datasets.utils import calculate_md5

    read = {
        "url": "https://example.invalid/c.tar.gz",
        "md5": calculate_md5(root / "c.tar.gz"),
        "train": ["c/a.bin", "c/b.bin"],
        "test": ["c/t.bin"],
        "label_bytes": label_bytes,
    }
    return read, x, y


@pytest.mark.parametrize("label_bytes", [1, 2])
@pytest.mark.parametrize("download", [True, False])
def test_cifar_records_are_read_without_unpickling(tmp_path, label_bytes, download):
    read, x, y = cifar_archive(tmp_path, label_bytes)
    got = data._cifar_arrays(tmp_path, download, **read)  # the archive is there, so nothing is fetched
    assert (got["x_train"] == x[:15].transpose(0, 2, 3, 1)).all() and (got["y_train"] == y[:15]).all()
    assert (got["x_test"] == x[15:].transpose(0, 2, 3, 1)).all() and (got["y_test"] == y[15:]).all()


def test_cifar_archive_with_another_checksum_is_refused(tmp_path):
    read, _, _ = cifar_archive(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="c.tar.gz is not the file .*its md5 is not 00"):
        data._cifar_arrays(tmp_path, False, **read | {"md5": "00"})


def test_cifar_tables_agree_with_torchvision():
    """Names and counts of classes, and that both archives come from the same place."""
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

    assert len(data.CIFAR10) == 10 and len(data.CIFAR100) == 100 and list(data.CIFAR100) == sorted(data.CIFAR100)
    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        assert data.PUBLIC[name].read.keywords["url"] == theirs.url.replace("-python", "-binary")
    assert [c.lower() for c in FashionMNIST.classes] == [c.lower() for c in data.FASHION]


@pytest.mark.parametrize("name", list(data.PUBLIC))
def test_missing_without_download_says_how_to_place_it(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"'{name}' is not here, or damaged, and download=False") as error:
        data.load(name, root=tmp_path, download=False)
    assert str(tmp_path) in str(error.value) and "http" in str(error.value) and f"{name}.npz" in str(error.value)
    assert all(file in str(error.value) for file in data.PUBLIC[name].files)
    assert not any(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    "error",
    [URLError("no route"), OSError("disk full"), RuntimeError("corrupted"), EOFError("cut short"), AssertionError()],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("name, dataset", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("svhn", "SVHN")])
def test_failed_download_says_how_to_place_it(monkeypatch, tmp_path, name, dataset, error):
    (tmp_path / "f").touch()  # what is to be fetched is there, so that reading is what fails
    monkeypatch.setattr(f"torchvision.datasets.{dataset}", failing(error))
    with pytest.raises(OSError, match=f"'{name}' could not be downloaded or read") as caught:
        data.load(name, root=tmp_path)
    assert caught.value.__cause__ is error
    assert str(tmp_path) in str(caught.value) and all(file in str(caught.value) for file in data.PUBLIC[name].files)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "usps", "svhn", "cifar10", "cifar100"])
def test_failed_download_of_a_file_says_how_to_place_it(monkeypatch, tmp_path, name):
    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(OSError, match=f"'{name}' could not be downloaded or read .*no route"):
        data.load(name, root=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_svhn_without_scipy_is_clear(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="'svhn' needs scipy .*pip install scipy"):
        data.load("svhn", root=tmp_path)


def test_digits_without_scikit_learn_is_clear(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        data.load("digits")


def test_a_damaged_cache_is_named(tmp_path):
    saved(tmp_path / "mnist.npz").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="mnist.npz: cannot be read .*delete it and load again"):
        data.load("mnist", root=tmp_path)


def test_interrupted_writing_leaves_no_file(monkeypatch, tmp_path):
    def interrupted(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.MNIST", FakeMNIST)
    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("torchvision.datasets.MNIST", FakeMNIST)
    monkeypatch.setattr(os, "replace", refused)
    with pytest.warns(UserWarning, match="mnist is loaded, but could not be kept as .*read-only"):
        assert data.load("mnist", root=tmp_path).shape == (1, 28, 28)
    assert not any(tmp_path.iterdir())


# --- Domains ---------------------------------------------------------------------------------------------------------


def with_domains(**changes):
    return (
        arrays()
        | {"domains": ("a", "b"), "domain_train": np.arange(12) // 6, "domain_test": np.arange(6) // 3}
        | changes
    )


def test_domains_travel_with_the_data():
    d = data.from_arrays("two", **with_domains())
    assert d.domains == ("a", "b") and d.domain_train.tolist() == [0] * 6 + [1] * 6 and "2 domains: a, b" in repr(d)
    assert d.domain_test.dtype == torch.int64 and d.to("meta").domain_test.is_meta and d.to("meta").x_train.is_meta
    plain = data.from_arrays("one", **arrays())
    assert plain.domains == () and plain.domain_train is None and plain.to("meta").domain_test is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"domain_train": np.arange(11) // 6}, "domain_train has 11 labels but x_train has 12 images"),
        ({"domain_train": np.arange(12) / 6}, "domain_train must be a 1-D array of integers"),
        ({"domain_test": None}, "domain_test must be a 1-D array of integers"),
        ({"domain_test": np.arange(6)}, "domain_test has domain 5, out of range: 2 domains"),
        ({"domain_test": np.zeros(6, int)}, "domain_test has no image of domain 'b'"),
        ({"domains": ()}, "domain_train needs `domains`"),
    ],
)
def test_domains_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays("two", **with_domains(**changes))


# --- Real data ------------------------------------------------------------------------------------------------------


def test_real_cifar10(needs_data):
    d = data.load("cifar10", root=needs_data("CIFAR-10", "cifar10.npz"), download=False)
    assert d.x_train.shape == (50_000, 3, 32, 32) and d.x_test.shape == (10_000, 3, 32, 32)
    assert torch.bincount(d.y_train).tolist() == [5000] * 10 and torch.bincount(d.y_test).tolist() == [1000] * 10
    assert channels_last(d.x_train) and d.classes[int(d.y_train[0])] == "frog"
    np.testing.assert_allclose(d.mean, (0.4914, 0.4822, 0.4465), atol=2e-4)  # the numbers everyone uses
    np.testing.assert_allclose(d.std, (0.2470, 0.2435, 0.2616), atol=2e-4)


def test_real_mnist_from_raw_files(needs_data, tmp_path):
    root = needs_data("MNIST", *data.PUBLIC["mnist"].files)
    (tmp_path / "MNIST").symlink_to(root / "MNIST")  # so that the cache is written elsewhere
    for d in (data.load("mnist", root=tmp_path, download=False), data.load("mnist", root=tmp_path, download=False)):
        assert d.x_train.shape == (60_000, 1, 28, 28) and d.x_test.shape == (10_000, 1, 28, 28)
        assert d.y_train[:5].tolist() == [5, 0, 4, 1, 9]
        np.testing.assert_allclose((d.mean[0], d.std[0]), (0.1307, 0.3081), atol=1e-4)
    assert (tmp_path / "mnist.npz").is_file()


# --- validation images ----------------------------------------------------------------------------------------------


@quick
@given(st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_class_of_every_domain_gives_the_same_share(share, seed):
    rng = np.random.default_rng(seed)
    y, domain = rng.integers(0, 3, 90), rng.integers(0, 2, 90)
    x = np.arange(90, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)  # every image is another one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = data.from_arrays("t", x, y, x, y, domains=("a", "b"), domain_train=domain, domain_test=domain)
    d = data.hold_out(whole, share, seed)
    again, other = data.hold_out(whole, share, seed), data.hold_out(whole, share, seed + 1)
    assert torch.equal(d.x_val, again.x_val) and torch.equal(d.x_train, again.x_train)
    both = torch.cat([d.x_train, d.x_val])[:, 0, 0, 0]
    assert sorted(both.tolist()) == list(range(90))  # none lost, none twice
    assert torch.equal(d.x_test, whole.x_test) and d.classes == whole.classes
    differs = not torch.equal(other.x_val, d.x_val)
    assert differs or len(d.y_val) <= 6 or len(d.y_train) <= 6
    for split in ("train", "val"):
        ids = getattr(d, f"x_{split}")[:, 0, 0, 0].numpy()
        assert (np.diff(ids) > 0).all()  # in their order
        np.testing.assert_array_equal(getattr(d, f"y_{split}"), y[ids])
        np.testing.assert_array_equal(getattr(d, f"domain_{split}"), domain[ids])
    for c in range(3):
        for k in range(2):
            n = int(((y == c) & (domain == k)).sum())
            assert int(((d.y_val == c) & (d.domain_val == k)).sum()) == min(max(1, round(share * n)), n - 1)


def test_what_is_held_out_moves_to_a_device_and_is_told():
    d = data.hold_out(data.load("digits"), 0.25)
    assert "training, 359 validation and 359 test images" in repr(d) or ", 360 validation" in repr(d), repr(d)
    assert d.to("cpu").y_val is not None
    pixels = d.x_train.double() / 255
    assert d.mean == pytest.approx([pixels.mean().item()]) and d.std == pytest.approx([pixels.std(correction=0).item()])
    assert d.mean != data.load("digits").mean


@pytest.mark.parametrize("length, stride", [(16, 1), (16, 2), (5, 2), (8, 8), (4, 7)])
def test_a_text_gives_its_last_windows_that_share_no_character_with_the_others(length, stride):
    texts = {"a": "".join(np.random.default_rng(0).choice(list("abcdefgh "), 900)), "b": "xyz " * 200 + "end"}
    text = from_texts("t", texts, length=length, stride=stride)
    d = data.hold_out(text, 0.2)
    for k in range(2):
        whole = text.x_train[text.domain_train == k]
        first, last = d.x_train[d.domain_train == k], d.x_val[d.domain_val == k]
        assert torch.equal(first, whole[: len(first)]) and torch.equal(last, whole[len(whole) - len(last) :])
        assert len(last) == round(0.2 * len(whole))
        if k == 0:
            steps = (
                len(whole) - len(last) - (len(first) - 1)
            )  # windows from the last of the first to the first of the last
            assert steps * stride >= length + 1 > (steps - 1) * stride or stride > length


def test_windows_out_of_order_are_refused():
    shuffled = data.some(data.load("shakespeare_excerpt"), 1500)
    with pytest.raises(ValueError, match="windows that are not in the order of their text, as fl.data.some leaves"):
        data.hold_out(shuffled)
    with pytest.raises(
        ValueError, match="is a text, whose windows overlap: take validation windows by fl.data.hold_out"
    ):
        data.some(data.load("shakespeare_excerpt"), 1500, validation=100)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, True, None, "0.2", float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share must lie between 0 and 1, got"):
        data.hold_out(data.load("digits"), share)


def test_too_few_images_or_twice_is_refused():
    d = data.load("digits")
    with pytest.raises(ValueError, match=r"'digits' has \d+ validation images already"):
        data.hold_out(data.hold_out(d))
    rare = data.from_arrays("rare", **arrays() | {"y_train": np.array([0] * 6 + [1] * 5 + [2])})
    with pytest.raises(ValueError, match=r"'rare' has 1 training example\(s\) of class '2': too few to hold any out"):
        data.hold_out(rare)


def test_validation_images_come_from_what_is_left_over():
    d = data.load("digits")
    part = data.some(d, 300, 50, seed=3, validation=100)
    plain = data.some(d, 300, 50, seed=3)
    assert torch.equal(part.x_train, plain.x_train) and torch.equal(part.x_test, plain.x_test) and plain.y_val is None
    assert len(part.y_val) == 100
    order = torch.randperm(len(d.y_train), generator=torch.Generator().manual_seed(3))
    assert torch.equal(part.x_val, d.x_train[order[300:400]]) and torch.equal(part.y_val, d.y_train[order[300:400]])
    with pytest.raises(ValueError, match="validation must be at most 1138, .* left over, got 1139; fl.data.hold_out"):
        data.some(d, 300, validation=1139)
    with pytest.raises(ValueError, match="validation takes what `images` leaves over"):
        data.some(d, validation=5)

"""The constructed classifiers: every point right, few layers, width 3, and what cannot be done refused."""

import math

import pytest
import torch
from torch import nn

from fedlib.book import construct
from fedlib.norms import GroupedLayerNorm


def problem(m, classes, seed, n=10):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=g, dtype=torch.float64), torch.randint(classes, (m,), generator=g)


def check(net, x, y, classes):
    """A width-3 LN-Net in float64 that is right everywhere, by plain arithmetic, within the bound. Its LN layers."""
    layers = list(net)
    assert all(type(layer) is (GroupedLayerNorm if i % 2 else nn.Linear) for i, layer in enumerate(layers))
    h = x.numpy()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            assert layer.weight.dtype == torch.float64
            h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            assert layer.groups == 1 and layer.weight is None and h.shape[1] == 3
            h = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
    assert h.shape == (len(x), classes) and (h.argmax(1) == y.numpy()).all()
    return len(layers) // 2


@pytest.mark.heavy
@pytest.mark.parametrize("n, seeds", [(10, 20), (1, 5)])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("m", [4, 8, 16, 32, 64])
def test_every_labelling_of_random_points(m, classes, n, seeds):
    """Points on a line (n = 1) leave no choice of the first projection, so they need the most layers."""
    for seed in range(seeds):
        x, y = problem(m, classes, seed, n)
        y[:2] = torch.tensor([0, 1])  # two classes at least
        net = construct.classifier(x, y, classes, seed=seed)
        bound = m - len(y.unique())
        assert check(net, x, y, classes) <= construct.layers_needed(x, y) == bound <= m - 2


@pytest.mark.parametrize("classes", [2, 5])
def test_alternating_labels_on_a_line(classes):
    """As many changes of label as there can be; every intermediate line can then be checked for what it lost."""
    x, y = torch.arange(12.0)[:, None], torch.arange(12) % classes
    net = construct.classifier(x, y)
    count = check(net, x.double(), y, classes)
    assert 1 <= count <= 12 - classes
    found = construct.steps(net, x)
    assert len(found) == count
    before = x[:, 0].double()
    for step in found:
        lift = step.lifted[:, 0]
        assert torch.corrcoef(torch.stack([lift, before]))[0, 1].abs() == pytest.approx(1)  # affine in the line before
        torch.testing.assert_close(step.lifted[:, 1], torch.ones_like(lift))
        torch.testing.assert_close(step.circle, nn.functional.normalize(step.lifted))
        assert step.axis.norm() == pytest.approx(1) and step.axis[1] > 0
        theta, phi = torch.atan2(*step.circle.T.flip(0)), torch.atan2(step.axis[1], step.axis[0])
        torch.testing.assert_close(step.line, (theta - phi).cos())
        same = (y[:, None] == y) & ((before[:, None] - before).abs() > 1e-9)
        assert (step.line[:, None] - step.line)[same].abs().min() < 1e-9  # two points of a class fell on each other
        apart = (step.line[:, None] - step.line)[y[:, None] != y].abs()
        assert apart.min() > 1e-6  # and none of two classes
        before = step.line


def test_equal_points_with_one_label_count_once():
    x, y = torch.arange(6.0).repeat(3)[:, None], (torch.arange(6) % 2).repeat(3)
    assert construct.layers_needed(x, y) == 4
    assert check(construct.classifier(x, y), x.double(), y, 2) <= 4


def test_one_class_or_one_point_needs_no_layer():
    for x in (torch.arange(5.0)[:, None], torch.zeros(1, 3), torch.zeros(4, 2)):
        y = torch.full((len(x),), 2)
        assert check(construct.classifier(x, y, classes=4), x.double(), y, 4) == 0


def test_separable_points_need_no_layer():
    x, y = torch.arange(9.0)[:, None], torch.tensor([4] * 3 + [0] * 3 + [2] * 3)
    net = construct.classifier(x, y, classes=6)
    assert check(net, x.double(), y, 6) == 0  # also more classes than points have


@pytest.mark.parametrize("scale, shift", [(1e-8, 0.0), (1e8, 0.0), (1.0, 1e6)])
def test_units_do_not_matter(scale, shift):
    x, y = problem(16, 2, 0, n=3)
    x = scale * x * torch.tensor([1, 1e6, 1e-6], dtype=x.dtype) + shift
    check(construct.classifier(x, y), x, y, 2)


def test_float32_points_and_seeds():
    x, y = problem(16, 2, 1, n=1)
    one, same, other = (construct.classifier(x.float(), y, seed=seed) for seed in (0, 0, 1))
    assert check(one, x.float().double(), y, 2)
    assert torch.equal(one[0].weight, same[0].weight) and not torch.equal(one[0].weight, other[0].weight)


def test_xor_takes_one_layer():
    x, y = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]]), torch.tensor([0, 0, 1, 1])
    assert 1 <= check(construct.classifier(x, y), x.double(), y, 2) <= 2


def test_the_plane():
    plane = construct.PLANE
    torch.testing.assert_close(plane.T @ plane, torch.eye(2, dtype=plane.dtype))
    torch.testing.assert_close(plane.sum(0), torch.zeros(2, dtype=plane.dtype))
    u = torch.randn(7, 2, dtype=plane.dtype)
    ln = nn.LayerNorm(3, eps=0.0).double()
    torch.testing.assert_close(ln(u @ plane.T), math.sqrt(3) * nn.functional.normalize(u) @ plane.T)


GOOD = torch.arange(5.0)[:, None]
TWO = torch.tensor([0, 1, 0, 1, 0])


@pytest.mark.parametrize(
    "points, labels, classes, message",
    [
        (GOOD[[0, 1, 2, 1, 4]], torch.tensor([0, 1, 0, 2, 0]), None, "1 and 3 are equal but have the labels 1 and 2"),
        (GOOD[:, 0], TWO, None, r"points must be a finite float matrix \(m, n\).*\(5,\)"),
        (GOOD.int(), TWO, None, "int32"),
        (GOOD[:0], TWO[:0], None, "not empty"),
        (GOOD / torch.tensor([1.0, 1, 0, 1, 1])[:, None], TWO, None, "1 entries not finite"),
        (GOOD, TWO[:4], None, r"labels must be int64.*5 points; got \(4,\)"),
        (GOOD, TWO.float(), None, "labels must be int64.*float32"),
        (GOOD, TWO - 1, None, "0 or more"),
        (GOOD, TWO, 1, "labels go up to 1, but classes=1"),
    ],
)
def test_refusals(points, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        construct.classifier(points, labels, classes)


def test_points_too_close_for_float64_are_named():
    x = torch.tensor([[1e3], [1.0], [2e3], [1.0 + 2e-16], [3e3], [5e3]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    with pytest.raises(ValueError, match="points 1 and 3 have different labels and lie 2.2e-16 apart"):
        construct.classifier(x, y)

"""The measures against numpy, numbers worked out by hand, and the bounds they are used for."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlib import measure, models


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.mlp((1, 4, 4), 5, hidden=(12, 8), bias=True)


@pytest.fixture
def x():
    return torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Copy(nn.Module):
    """Its features and logits are its input."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Identity()

    def forward(self, x):
        return self.head(self.body(x))


def test_per_class_accuracy_by_hand():
    x = torch.eye(4)[[0, 1, 1, 1, 2, 3]].reshape(6, 4, 1, 1)  # predicted: 0, 1, 1, 1, 2, 3
    y = torch.tensor([0, 1, 1, 0, 1, 3])
    accuracy = measure.per_class_accuracy(Copy(), x, y, 4)
    assert accuracy.dtype == torch.float64
    assert accuracy.tolist()[:2] == [1 / 2, 2 / 3] and accuracy[2].isnan() and accuracy[3] == 1


def test_per_class_accuracy_averages_to_accuracy(model, x):
    y = torch.arange(600) % 5
    accuracy = measure.per_class_accuracy(model, x, y, 5)
    assert accuracy.mean().item() == pytest.approx((model(x).argmax(1) == y).double().mean().item())


def test_batches_make_no_difference(model, x):
    assert len(x) > 2 * measure.BATCH
    torch.testing.assert_close(measure.features(model, x), model.body(x).detach())
    assert not measure.features(model, x).requires_grad
    np.testing.assert_allclose(measure.feature_norms(model, x), np.linalg.norm(model.body(x).detach(), axis=1), 1e-5)
    np.testing.assert_allclose(measure.class_weight_norms(model), np.linalg.norm(model.head.weight.detach(), axis=1),
                               1e-6)


def test_mode_and_statistics_are_left_alone(x):
    model = models.mlp((1, 4, 4), 5, hidden=(12, 8), norm="batch")
    model.train()
    model.body.norm1.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    one, both = measure.features(model, x[:1]), measure.features(model, x[:2])
    torch.testing.assert_close(one, both[:1])
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training and model.body.norm2.training and not model.body.norm1.training
    with pytest.raises(RuntimeError):
        measure.features(model, x[:, :, :2])
    assert model.training


@pytest.mark.parametrize("norm", ["feature", "layer"])
def test_normalised_features_have_length_sqrt_d(norm, x):
    torch.manual_seed(0)
    model = models.mlp((1, 4, 4), 5, hidden=(12, 8), norm=norm, eps=1e-12)
    lengths = measure.feature_norms(model, x)
    lengths = lengths[lengths > 0]  # a sample with no active unit stays zero
    assert len(lengths) > 500
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(8)))


def test_singular_values():
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(measure.singular_values(matrix, normalise=False), expected)
    np.testing.assert_allclose(measure.singular_values(matrix), expected / expected[0])
    assert measure.singular_values(torch.zeros(3, 2)).tolist() == [0, 0]


def test_effective_rank():
    assert measure.effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    assert measure.effective_rank(7 * torch.eye(4)) == pytest.approx(4)
    # sigma = 3, 1, 0: p = 3/4, 1/4
    by_hand = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert measure.effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(by_hand)
    assert measure.effective_rank(torch.zeros(3, 2)) == 0
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert measure.effective_rank(matrix) == pytest.approx(measure.effective_rank(100 * matrix.T))


def test_margins_by_hand():
    x = torch.tensor([[3.0, 1, 2], [3, 1, 2]]).reshape(2, 3, 1, 1)
    assert measure.margins(Copy(), x, torch.tensor([0, 1])).tolist() == [1, -2]


def test_margins_bound_the_loss_and_are_bounded_by_norms(x):
    torch.manual_seed(0)
    model, y = models.mlp((1, 4, 4), 5, hidden=(12, 8)).double(), torch.arange(600) % 5
    x = x.double()
    margin, loss = measure.margins(model, x, y), F.cross_entropy(model(x), y, reduction="none").detach()
    assert torch.equal(margin > 0, model(x).argmax(1) == y)
    assert (torch.log1p((-margin).exp()) <= loss + 1e-12).all()
    assert (loss <= torch.log1p(4 * (-margin).exp()) + 1e-12).all()
    apart = torch.cdist(model.head.weight, model.head.weight).detach()[y].amax(1)
    assert (margin <= measure.feature_norms(model, x) * apart + 1e-12).all()


@pytest.mark.parametrize("call, message", [
    (lambda m, x, y: measure.features(m, (255 * x).byte()), "x must hold one float image at least.*uint8"),
    (lambda m, x, y: measure.features(m, x[:0]), "x must hold one float image"),
    (lambda m, x, y: measure.per_class_accuracy(m, x, y[:3], 5), r"y must be int64.*got \(3,\)"),
    (lambda m, x, y: measure.per_class_accuracy(m, x, y.int(), 5), "y must be int64.*int32"),
    (lambda m, x, y: measure.per_class_accuracy(m, x, y, 4), r"y must lie in \[0, 4\); got labels from 0 to 4"),
    (lambda m, x, y: measure.margins(m, x, y + 1), r"y must lie in \[0, 5\); got labels from 1 to 5"),
    (lambda m, x, y: measure.singular_values(x), "features must be a finite"),
    (lambda m, x, y: measure.effective_rank(torch.full((2, 2), torch.nan)), "4 entries not finite"),
])
def test_refusals(model, x, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, x, torch.arange(600) % 5)

"""Errors under corruptions, and what is made of them, by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sslmodules import SSLModule
from sslmodules.evaluation.robustness import (
    accuracy_by_severity,
    corruption_errors,
    mean_corruption_error,
    relative_mean_corruption_error,
)


def test_mean_corruption_error_is_a_mean_of_ratios_of_sums():
    errors = {"fog": [0.1, 0.2], "snow": [0.5, 0.7]}
    reference = {"fog": [0.5, 0.7], "snow": [0.5, 0.3]}
    assert mean_corruption_error(errors, reference) == pytest.approx((0.3 / 1.2 + 1.2 / 0.8) / 2)
    assert mean_corruption_error(reference, reference) == 1
    relative = relative_mean_corruption_error(errors, 0.05, reference, 0.3)
    assert relative == pytest.approx((0.2 / 0.6 + 1.1 / 0.2) / 2)
    assert accuracy_by_severity(errors) == pytest.approx([0.7, 0.55])


def test_relative_error_is_nan_where_the_reference_loses_nothing():
    assert math.isnan(relative_mean_corruption_error({"fog": [0.5]}, 0.1, {"fog": [0.2]}, 0.2))


def test_errors_are_those_of_the_clean_classifier_on_corrupted_images():
    """Of grey images of 0.37 and 0.6 the threshold 0.5 tells the darker ones wrongly once 0.15 is added."""
    images = torch.tensor([0.37, 0.6]).repeat(3).view(6, 1, 1, 1).expand(6, 3, 8, 8)
    module = SSLModule(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    loader = DataLoader(TensorDataset(images, torch.arange(6) % 2), batch_size=4)

    def classify(features):
        return torch.stack([0.5 - features[:, 0], features[:, 0] - 0.5], 1)

    assert corruption_errors(module, loader, classify, "brightness") == [0, 0, 0.5, 0.5, 0.5]


def test_every_encoder_meets_the_same_draws():
    images = torch.full((6, 3, 8, 8), 128, dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images, torch.zeros(6, dtype=torch.long)), batch_size=4)
    module = SSLModule(nn.Flatten())
    seen = []

    def classify(features):
        seen.append(features)
        return torch.ones(len(features), 1)

    for seed in (0, 0, 1):
        corruption_errors(module, loader, classify, "gaussian_noise", seed)
    assert all(torch.equal(a, b) for a, b in zip(seen[:5], seen[5:10], strict=True))
    assert not torch.equal(seen[0], seen[10])
    assert not torch.equal(seen[0][0], seen[0][4])  # the second batch goes on where the first has ended

"""fold_function against every sum, of functions that are no step everywhere."""

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from stompp_kernels.conversion.packing.folding import fold_function
from stompp_kernels.ops import Affine
from stompp_kernels.ops.reference import bits_from_words


def affine_of(scales, biases):
    return Affine(torch.tensor(scales), torch.tensor(biases))


def folded_signs(threshold, acc):
    flip = bits_from_words(threshold.flip_words, threshold.thresholds.shape[1])
    return (acc[:, None] < threshold.thresholds[0]) ^ flip


SCALES = [0.1, -0.1, 0.0, -0.0, 0.05, 0.05, -0.03, 1e-30, -1e-42, 0.1, 0.01]
BIASES = [0.0, 0.3, -0.2, 0.0, 1e4, -2.0, 1e-3, 0.0, 0.0, -0.1, -1e-42]
K = 45


@pytest.mark.parametrize("chunk", [1 << 20, 100])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_python", "silu", "quick_gelu", "relu", "leaky_relu"])
def test_thresholds_are_the_function_s_signs_for_every_sum(name, chunk, monkeypatch):
    monkeypatch.setattr("stompp_kernels.conversion.packing.folding._CHUNK", chunk)
    affine, function = affine_of(SCALES, BIASES), ACT2FN[name]
    threshold = fold_function(function, affine, K)
    acc = torch.arange(-K, K + 1, 2)
    expected = function(acc.float()[:, None] * affine.scale + affine.bias) < 0
    assert torch.equal(folded_signs(threshold, acc), expected)
    assert expected.any() == (name != "relu")
    assert not expected.all()


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_python"])
@pytest.mark.parametrize(("scale", "bias"), [(0.3, 0.0), (-0.3, 0.0), (0.1, -3.0)])
@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_a_channel_in_which_gelu_rounds_to_zero_far_below_zero_does_not_fold(name, scale, bias, chunk, monkeypatch):
    """Its sign is +1 there again: from about -5.5 on, and not from the same value on in each of torch's ways."""
    monkeypatch.setattr("stompp_kernels.conversion.packing.folding._CHUNK", chunk)
    assert fold_function(ACT2FN[name], affine_of([*SCALES, scale, 0.1], [*BIASES, bias, 0.0]), K) == len(SCALES)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_python"])
def test_a_channel_that_is_far_below_zero_for_every_sum_is_constant(name):
    threshold = fold_function(ACT2FN[name], affine_of([0.02, 0.1], [-13.5, 0.0]), K)
    assert folded_signs(threshold, torch.tensor([-K, -1, 1, K])).tolist() == [[False, True]] * 2 + [[False, False]] * 2


def test_a_bit_that_no_sum_changes():
    threshold = fold_function(F.silu, affine_of([0.1, -0.1, 0.1], [100.0, -50.0, -50.0]), K)
    acc = torch.tensor([-K, 1, K])
    assert folded_signs(threshold, acc).tolist() == [[False, True, True]] * 3


def test_signs_that_depend_on_the_layout_are_no_threshold():
    def differs_one_by_one(x):
        return x if x.is_contiguous() or x.t().is_contiguous() else x + 0.02

    def differs_without_a_library(x):
        return x + 0.02 if x.t().is_contiguous() else x

    affine = affine_of([1.0, 0.01], [0.0, -0.01])
    for function in (differs_one_by_one, differs_without_a_library):
        assert fold_function(function, affine, K) == 1

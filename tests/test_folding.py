"""fold_threshold against every integer that the accumulator can be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stompp_kernels.conversion.packing.folding import fold_affine, fold_limits, fold_norm, fold_threshold
from stompp_kernels.ops.reference import affine, bits_from_words, multiply_add

CPU = torch.device("cpu")
GAMMAS = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e-38, -1e-42, 1e30, -1e30, 3e38, 0.1, -0.1]),
)
BIASES = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30]))
MEANS = st.one_of(st.integers(-40, 40).map(float), st.floats(-40, 40, width=32), st.sampled_from([0.5, -0.5, 1e20]))
VARS = st.one_of(st.floats(0.0009765625, 100, width=32), st.sampled_from([0.0, 1.0 - 1e-5, 4.0, 1e-30, 1e30]))
SCALES = st.one_of(st.floats(-2, 2, width=32), st.sampled_from([1.0, 0.0, 1e-20]))


def norm_of(gamma, beta, mean, var, images):
    norm = (nn.BatchNorm2d if images else nn.BatchNorm1d)(len(gamma)).eval()
    with torch.no_grad():
        for tensor, values in zip(
            (norm.weight, norm.bias, norm.running_mean, norm.running_var), (gamma, beta, mean, var), strict=True
        ):
            tensor.copy_(torch.tensor(values))
    return norm


def signs_of_the_network(norm, scale, bias, accumulators, residual, images, after=None):
    """bool [accumulators, channels]: the batch that the float network would run."""
    channels = len(scale)
    y = accumulators.float()[:, None].expand(-1, channels) * scale + bias
    if images:
        # All accumulators are pixels of one image, as BatchNorm sees them in a network.
        y = y.T.reshape(1, channels, len(accumulators), 1).contiguous()
    with torch.no_grad():
        y = norm(y)
        if residual is not None:
            y = y + residual
        if after is not None:
            y = after(y)
    return y.reshape(channels, -1).T < 0 if images else y < 0


def folded_signs(threshold, accumulators, row):
    flip = bits_from_words(threshold.flip_words, threshold.thresholds.shape[1])
    return (accumulators[:, None].to(torch.int32) < threshold.thresholds[row]) ^ flip


def check(norm, scale, bias, K, residual, images, after=None):
    channels = len(scale)

    def function(acc, value):
        y = acc * scale + bias
        y = norm(y.reshape(1, channels, 1, 1) if images else y.reshape(1, channels))
        y = y if value is None else y + value
        return (y if after is None else after(y)).reshape(channels)

    with torch.no_grad():
        threshold = fold_threshold(function, K, channels, residual, CPU)
    assert threshold.thresholds.dtype == torch.int32
    assert threshold.thresholds.shape == (2 if residual else 1, channels)
    accumulators = torch.arange(-K, K + 1)
    for row, value in enumerate((1.0, -1.0) if residual else (None,)):
        expected = signs_of_the_network(norm, scale, bias, accumulators, value, images, after)
        assert torch.equal(folded_signs(threshold, accumulators, row), expected), (row, threshold)
    return threshold


@given(
    parameters=st.lists(st.tuples(GAMMAS, BIASES, MEANS, VARS, SCALES, BIASES), min_size=1, max_size=5),
    K=st.integers(1, 80),
    residual=st.booleans(),
    images=st.booleans(),
)
def test_thresholds_equal_batch_norm_for_every_accumulator(parameters, K, residual, images):
    gamma, beta, mean, var, scale, bias = (list(column) for column in zip(*parameters, strict=True))
    norm = norm_of(gamma, beta, mean, var, images)
    check(norm, torch.tensor(scale), torch.tensor(bias), K, residual, images)


@given(
    gamma=st.sampled_from([1.0, -1.0, 0.25, -3.0]),
    tie=st.integers(-20, 20),
    shift=st.integers(-2, 2),
    residual=st.booleans(),
    images=st.booleans(),
)
def test_exact_ties_are_positive(gamma, tie, shift, residual, images):
    # With var + eps = 1 every operation is exact: gamma * (acc - tie) + gamma * shift, zero at acc = tie - shift.
    norm = norm_of([gamma], [gamma * shift], [tie], [1.0], images)
    norm.eps = 0.0
    threshold = check(norm, torch.ones(1), torch.zeros(1), 30, residual, images)
    if not residual:
        zero = torch.tensor([tie - shift])
        assert not folded_signs(threshold, zero, 0).item()
        assert folded_signs(threshold, zero + (-1 if gamma > 0 else 1), 0).item()


@pytest.mark.parametrize("gamma", [1.0, -1.0])
@pytest.mark.parametrize("mean", [8.5, -8.5])
@pytest.mark.parametrize("K", [1, 9])
def test_the_sign_may_change_at_the_last_integer(gamma, mean, K):
    # K - 0.5 away from zero: one accumulator alone, K or -K, has the other sign.
    norm = norm_of([gamma], [0.0], [mean * (K - 0.5) / 8.5], [1.0], True)
    threshold = check(norm, torch.ones(1), torch.zeros(1), K, False, True)
    signs = folded_signs(threshold, torch.arange(-K, K + 1), 0)
    assert int(signs.sum()) in (1, 2 * K)


@pytest.mark.parametrize("beta", [-1.0, -0.0, 0.0, 1.0])
@pytest.mark.parametrize("residual", [False, True])
def test_gamma_zero_is_a_constant(beta, residual):
    norm = norm_of([0.0], [beta], [3.0], [2.0], True)
    check(norm, torch.ones(1), torch.zeros(1), 9, residual, True)


@pytest.mark.parametrize("gamma", [2.0, -2.0])
@pytest.mark.parametrize("constant", ["first", "second", "both"])
def test_one_row_of_the_residual_may_be_constant(gamma, constant):
    # |gamma * acc| <= 0.9 and a bias of +-1 and more: with one value of the residual the sign never changes.
    gamma, beta = gamma * 0.05, {"first": 1.0, "second": -1.0, "both": 5.0}[constant]
    norm = norm_of([gamma], [beta], [0.0], [1.0], True)
    threshold = check(norm, torch.ones(1), torch.zeros(1), 9, True, True)
    accumulators = torch.arange(-9, 10)
    varies = [len(set(folded_signs(threshold, accumulators, row)[:, 0].tolist())) == 2 for row in (0, 1)]
    assert varies == {"first": [False, True], "second": [True, False], "both": [False, False]}[constant]


@given(gamma=GAMMAS, beta=BIASES, mean=MEANS, K=st.integers(1, 40), second=GAMMAS)
def test_two_norms_around_the_addition(gamma, beta, mean, K, second):
    norm = norm_of([gamma], [beta], [mean], [2.0], True)
    after = norm_of([second], [0.5], [1.0], [3.0], True)
    check(norm, torch.ones(1), torch.zeros(1), K, True, True, after)


def test_many_channels_use_every_word_of_flips():
    g = torch.Generator().manual_seed(0)
    n = 70
    values = [torch.randn(n, generator=g) for _ in range(3)]
    norm = norm_of(*(v.tolist() for v in values), (torch.rand(n, generator=g) + 0.1).tolist(), True)
    threshold = check(norm, torch.ones(n), torch.zeros(n), 300, True, True)
    assert torch.equal(bits_from_words(threshold.flip_words, n), values[0] < 0)
    assert threshold.flip_words[2] >> 6 == 0, "zero tail"


FLOAT_EDGES = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3.4028234663852886e38, -3.4028234663852886e38]


@given(gamma=GAMMAS, beta=BIASES, mean=MEANS, variance=st.floats(1e-6, 1e6))
def test_limits_of_a_norm_are_those_of_its_sign(gamma, beta, mean, variance):
    norm = norm_of([gamma], [beta], [mean], [variance], True)
    low, high = fold_limits(lambda x: norm(x.reshape(1, 1, 1, 1)).reshape(1), 1, torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.tensor(FLOAT_EDGES), mean + 3 * torch.randn(500, generator=g) * variance**0.5])
    edge = low if torch.isfinite(low) else high
    if torch.isfinite(edge):  # the very values around the change
        up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        x = torch.cat([x, edge, torch.nextafter(edge, up), torch.nextafter(edge, down)])
    expected = norm(x.reshape(1, 1, 1, -1)).reshape(-1) < 0
    assert torch.equal((x < low) | (x > high), expected)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("K", [1, 9, 64, 577, 4608])
def test_affine_equals_batch_norm_for_every_accumulator(K, images, g):
    channels = 24
    deviation = K**0.5
    norm = norm_of(
        torch.randn(channels, generator=g).tolist(),
        torch.randn(channels, generator=g).tolist(),
        (deviation * torch.randn(channels, generator=g)).tolist(),
        (K * (0.2 + torch.rand(channels, generator=g))).tolist(),
        images,
    )

    @torch.no_grad()
    def function(acc):
        acc = acc * torch.ones(channels)
        return norm(acc[:, :, None, None]).flatten(1) if images else norm(acc)

    folded = fold_affine(function, K, CPU)
    acc = torch.arange(-K, K + 1)[:, None].expand(-1, channels)
    found = affine(acc, folded.scale, folded.bias, None, None, None, folded.fused, torch.float32)
    assert torch.equal(found, function(acc[:, :1].float()))


def test_affine_of_a_longer_chain_is_right_to_a_rounding(g):
    channels, K = 16, 300
    norm = norm_of([1.5] * channels, [0.1] * channels, [2.0] * channels, [90.0] * channels, False)
    scale, bias = torch.rand(channels, generator=g) + 0.1, torch.randn(channels, generator=g)

    @torch.no_grad()
    def function(acc):
        return norm(acc * scale + bias)

    folded = fold_affine(function, K, CPU)
    acc = torch.arange(-K, K + 1)[:, None].expand(-1, channels)
    found = affine(acc, folded.scale, folded.bias, None, None, None, folded.fused, torch.float32)
    torch.testing.assert_close(found, function(acc.float()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("affine_norm", [False, True])
def test_a_batch_norm_of_floats_is_met_exactly_or_not_at_all(affine_norm, g):
    norm = nn.BatchNorm2d(24, affine=affine_norm).eval()
    norm.running_mean.copy_(torch.randn(24, generator=g))
    norm.running_var.copy_(torch.rand(24, generator=g) + 0.1)
    if affine_norm:
        nn.init.normal_(norm.weight, generator=g)
        nn.init.normal_(norm.bias, generator=g)
    found = {fused: fold_norm(norm, fused) for fused in (False, True)}
    assert sum(pair is not None for pair in found.values()) == 1, "one way to round is torch's"
    ((fused, (scale, bias)),) = [item for item in found.items() if item[1] is not None]
    x = 5 * torch.randn(2, 24, 9, 7, generator=g)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            y = multiply_add(x.permute(0, 2, 3, 1), scale, bias, fused).permute(0, 3, 1, 2)
            assert torch.equal(norm(x.contiguous(memory_format=layout)), y)

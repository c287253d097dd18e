"""What several test files use: random inputs that reach the corners, and a comparison of bits."""

import ctypes
import itertools
import math

import torch

from stompp_kernels import native
from stompp_kernels.ops import reference

SHORT_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*SHORT_FLOATS, torch.float64)
INT_LIKE = {2: torch.int16, 4: torch.int32, 8: torch.int64}

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

IMPLEMENTATIONS = [item.name for item in native.implementations() if item.available and item.device == "cpu"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_signs(shape, g, dtype=torch.float32):
    return torch.randint(0, 2, tuple(shape), generator=g).mul_(2).sub_(1).to(dtype)


def special_values(dtype):
    """Signed zeros, denormals, the neighbours of 1, the largest, infinities, NaN of both signs."""
    info = torch.finfo(dtype)
    one = torch.ones((), dtype=dtype)
    beyond, within = (torch.nextafter(one, one * end).item() for end in (2, 0))
    positive = [0.0, info.smallest_normal / 4, info.tiny, 0.5, within, 1.0, beyond, 2.0, info.max]
    values = torch.tensor([*positive, math.inf, math.nan], dtype=torch.float64).to(dtype)
    bits = values.view(INT_LIKE[dtype.itemsize])
    both_signs = torch.cat([bits, bits ^ torch.iinfo(bits.dtype).min])
    return both_signs.view(dtype)


def random_floats(shape, g, dtype=torch.float32, specials=0.25):
    """Normal values, a part of them replaced by special ones."""
    x = torch.randn(tuple(shape), generator=g, dtype=torch.float64).to(dtype)
    if specials == 0:
        return x
    special = special_values(dtype)
    chosen = special[torch.randint(0, len(special), tuple(shape), generator=g)]
    return torch.where(torch.rand(tuple(shape), generator=g) < specials, chosen, x)


def random_words(shape, K, g):
    """int32 [*shape, ceil(K/32)] of random bits with zero tails."""
    return reference.pack_signs(random_signs((*shape, K), g))


def strided_forms(x):
    """``x`` again and again, with other strides or storage offsets: (name, tensor of equal values)."""
    yield "contiguous", x.clone()
    if x.dim() >= 2:
        yield "first and last dimensions swapped in memory", x.transpose(0, -1).contiguous().transpose(0, -1)
    if x.dim() == 4:
        yield "channels last", x.clone(memory_format=torch.channels_last)
    spread = torch.empty((*x.shape[:-1], 2 * x.shape[-1] + 1), dtype=x.dtype)
    spread[..., 1::2] = x
    yield "every other element", spread[..., 1::2]
    wide = torch.empty((*x.shape[:-1], x.shape[-1] + 3), dtype=x.dtype)
    wide[..., 2:-1] = x
    yield "a slice of wider rows", wide[..., 2:-1]
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:]
    yield "one element into its storage", shifted.copy_(x.flatten()).view(x.shape)
    yield "one byte off its alignment", misaligned(x)


def misaligned(x):
    """``x`` in memory that begins one byte after a multiple of 8."""
    storage = bytearray(x.numel() * x.itemsize + 16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(storage))
    offset = (1 - address) % 8
    out = torch.frombuffer(storage, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape)
    assert out.data_ptr() % 8 == 1
    return out.copy_(x)


def assert_same_bits(actual, expected, what=""):
    """Same shape, dtype and bits; any NaN equals any other."""
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    if actual.is_floating_point():
        bits = INT_LIKE[actual.dtype.itemsize]
        a, b = actual.contiguous(), expected.contiguous()
        same = (a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())
    else:
        same = actual == expected
    if not bool(same.all()):
        at = tuple(torch.nonzero(~same)[0].tolist())
        raise AssertionError(
            f"{what}: {int((~same).sum())} of {same.numel()} differ, first at {at}: "
            f"{actual[at].item()!r} instead of {expected[at].item()!r}"
        )


def grid(**choices):
    """Every combination of the choices, as dicts."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]

r"""CPU kernels against PyTorch: `python -m benchmarks.cpu`.

Sides alternate within one process; medians; the same number of threads on both sides. Weights are packed beforehand, as
a user packs them once; packing activations is a group of its own.
To see an AVX2 machine's figures on one with AVX-512, hold both sides to AVX2:

    STOMPP_CPU=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        python -m benchmarks.cpu
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import RESULTS, Case, quietest, run, save, scaling, summary
from stompp_kernels import native, ops
from stompp_kernels.ops import reference

CONVS = ((56, 64), (28, 128), (14, 256), (7, 512))  # (pixels, channels) of ResNet's 3x3 layers
BERT = ((768, 768), (3072, 768), (768, 3072))  # (N, K)


def signs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, shape, generator=generator).float() * 2 - 1


def equal(ours: Callable[[], Tensor], expected: Callable[[], Tensor]) -> Callable[[], None]:
    """A check that two tensors have the same values."""

    def check() -> None:
        assert torch.equal(ours().to(torch.float32), expected().to(torch.float32)), "wrong result: not timed"

    return check


def bgemm_cases(full: bool) -> Iterator[Case]:
    sizes = (256, 1024, 4096) if full else (256, 1024)
    shapes = [(M, N, K) for M, N, K in itertools.product(sizes, sizes, sizes) if K >= 1024]
    shapes += [(M, N, K) for M in ((128, 4096) if full else (128,)) for N, K in BERT]
    for M, N, K in shapes:
        yield _bgemm_case("bgemm", M, N, K)
    for M in (1, 2, 4, 8):
        yield _bgemm_case("bgemm few rows", M, 4096, 4096)


def _bgemm_case(group: str, M: int, N: int, K: int) -> Case:
    a, w = signs(M, K), signs(N, K, seed=1)
    a_words, packed = ops.pack_signs(a), ops.pack_weight(w)

    def ours() -> Tensor:
        return ops.bgemm(a_words, packed)

    def fp32() -> Tensor:
        return a @ w.T

    return Case(group, f"{M} x {N} x {K}", ours, {"fp32": fp32}, equal(ours, fp32), 2 * M * N * K)


@dataclass(frozen=True)
class Conv:
    """A convolution of square images with "same" padding."""

    size: int
    C: int
    O: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    batch: int = 1

    @property
    def name(self) -> str:
        parts = [f"{self.kernel}x{self.kernel}", f"{self.size}x{self.size}x{self.C}"]
        if self.O != self.C:
            parts.append(f"to {self.O} channels")
        if self.stride != 1:
            parts.append(f"stride {self.stride}")
        if self.groups != 1:
            parts.append("depthwise" if self.groups == self.C else f"{self.groups} groups")
        if self.batch != 1:
            parts.append(f"batch {self.batch}")
        return ", ".join(parts)


OTHER_CONVS = (
    Conv(56, 64, 64, kernel=5),
    Conv(28, 128, 128, kernel=7),
    Conv(56, 64, 128, stride=2),
    Conv(56, 64, 128, kernel=1, stride=2),
    Conv(56, 8, 32),
    Conv(56, 16, 32),
    Conv(56, 32, 32),
    Conv(28, 128, 128, groups=4),
    Conv(28, 128, 128, groups=32),
    Conv(28, 128, 128, groups=16),
    Conv(28, 128, 128, batch=64),
)
DEPTHWISE = (Conv(56, 128, 128, groups=128), Conv(14, 512, 512, groups=512), Conv(56, 128, 128, 3, 2, 128))


def bconv2d_cases() -> Iterator[Case]:
    for (size, channels), out in itertools.product(CONVS, ("bits", "int32", "float")):
        yield _bconv2d_case(f"bconv2d {out}", Conv(size, channels, channels), out)
    for size, channels in CONVS:
        yield _bconv2d_case("bconv2d 1x1 bits", Conv(size, channels, channels, kernel=1), "bits")
    for conv in OTHER_CONVS:
        yield _bconv2d_case("bconv2d other bits", conv, "bits")
    for conv, out in itertools.product(DEPTHWISE, ("bits", "float")):
        yield _bconv2d_case(f"bconv2d depthwise {out}", conv, out)


def _bconv2d_case(group: str, conv: Conv, out: str) -> Case:
    stride, padding, groups, O = conv.stride, conv.kernel // 2, conv.groups, conv.O
    x = signs(conv.batch, conv.C, conv.size, conv.size).contiguous(memory_format=torch.channels_last)
    w = signs(O, conv.C // groups, conv.kernel, conv.kernel, seed=1)
    x_words, packed = ops.pack_signs(x.permute(0, 2, 3, 1)), ops.pack_conv_weight(w, groups)
    w_last = w.contiguous(memory_format=torch.channels_last)
    int8 = _int8_conv(x, w, stride, padding, groups)
    epilogues = {
        "bits": ops.Threshold(torch.zeros(1, O, dtype=torch.int32), torch.zeros((O + 31) // 32, dtype=torch.int32)),
        "int32": None,
        "float": ops.Affine(torch.full((O,), 0.5), torch.ones(O)),
    }

    def ours() -> Tensor:
        return ops.bconv2d(x_words, packed, stride, padding, 1, groups, epilogue=epilogues[out])

    def fp32() -> Tensor:
        return F.conv2d(x, w_last, stride=stride, padding=padding, groups=groups)

    def expected() -> Tensor:
        y = fp32().permute(0, 2, 3, 1)
        return reference.pack_signs(y) if out == "bits" else y if out == "int32" else y * 0.5 + 1

    pixels = conv.batch * (-(-conv.size // stride)) ** 2
    operations = 2 * O * (conv.C // groups) * conv.kernel**2 * pixels
    return Case(group, f"{conv.name} to {out}", ours, {"fp32": fp32, "int8": int8}, equal(ours, expected), operations)


def _int8_conv(x: Tensor, w: Tensor, stride: int, padding: int, groups: int) -> Callable[[], Tensor]:
    """torch's quantized convolution, with its weights packed beforehand as ours are."""
    torch.backends.quantized.engine = "x86"
    O = w.shape[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are deprecated", category=UserWarning)
        quantized_x = torch.quantize_per_tensor(x, 1.0, 64, torch.quint8)
        quantized_w = torch.quantize_per_channel(w, torch.ones(O), torch.zeros(O, dtype=torch.long), 0, torch.qint8)
    prepacked = torch.ops.quantized.conv2d_prepack(quantized_w, None, [stride] * 2, [padding] * 2, [1, 1], groups)
    return lambda: torch.ops.quantized.conv2d(quantized_x, prepacked, 1.0, 128)


def pack_cases() -> Iterator[Case]:
    """Beside packing alone stands a copy of the same floats, which reads as much and writes more."""
    shape = (16, 128, 64, 64)
    for name, x in (
        ("fp32 channels_last", torch.randn(shape).contiguous(memory_format=torch.channels_last)),
        (
            "bf16 channels_last",
            torch.randn(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last),
        ),
        ("fp32 NCHW", torch.randn(shape)),
    ):
        copy, nhwc = torch.empty_like(x), x.permute(0, 2, 3, 1)

        def ours(nhwc: Tensor = nhwc) -> Tensor:
            return ops.pack_signs(nhwc)

        def memcpy(x: Tensor = x, copy: Tensor = copy) -> Tensor:
            return copy.copy_(x)

        def expected(nhwc: Tensor = nhwc) -> Tensor:
            return reference.pack_signs(nhwc)

        nbytes = x.numel() * x.element_size()
        yield Case("pack_signs", name, ours, {"copy": memcpy}, equal(ours, expected), bytes=nbytes)

    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    words, nbytes = ops.pack_signs(x.permute(0, 2, 3, 1)), 4 * x.numel()

    def unpack() -> Tensor:
        return ops.unpack_signs(words, shape[1])

    def fill() -> Tensor:
        return torch.full(shape, 1.0)

    def unpacked() -> Tensor:
        return reference.unpack_signs(words, shape[1], torch.float32)

    yield Case("unpack_signs", "fp32", unpack, {"fill": fill}, equal(unpack, unpacked), bytes=nbytes)

    norm = torch.nn.BatchNorm2d(shape[1]).eval()
    low, high = torch.zeros(shape[1]), torch.full((shape[1],), torch.inf)  # of a norm that was not trained

    def fused() -> Tensor:
        return ops.pack_outside(x.permute(0, 2, 3, 1), low, high)

    def separate() -> Tensor:
        with torch.no_grad():
            return ops.pack_signs(norm(x).permute(0, 2, 3, 1))

    yield Case(
        "BatchNorm + sign + pack",
        "fp32 channels_last",
        fused,
        {"two passes": separate},
        equal(fused, separate),
        bytes=nbytes,
    )


def progressive_cases(full: bool) -> Iterator[Case]:
    n = (16 if full else 1) << 20
    u, grad = torch.randn(n, requires_grad=True), torch.randn(n)
    mask = ops.pack_signs(torch.randn(n))
    frozen = reference.bits_from_words(mask, n)

    class Eager(torch.autograd.Function):
        """The formula as PyTorch users write it, with the clip surrogate."""

        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return torch.where(frozen, torch.where(u < 0, -1.0, 1.0), u.clamp(-1, 1))

        @staticmethod
        def backward(ctx, grad):
            (u,) = ctx.saved_tensors
            return grad * (u.abs() <= 1)

    def ours() -> Tensor:
        return torch.autograd.grad(ops.progressive(u, mask, "clip"), u, grad)[0]

    def eager() -> Tensor:
        return torch.autograd.grad(Eager.apply(u), u, grad)[0]

    yield Case(
        "progressive", f"forward + backward, {n >> 20}M", ours, {"eager": eager}, equal(ours, eager), bytes=20 * n
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, one after the other"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases; see timing.quietest")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    rows = []
    full = not arguments.quick
    for _, threads in itertools.product(range(arguments.rounds), arguments.threads):
        for cases in (bgemm_cases(full), bconv2d_cases(), pack_cases(), progressive_cases(full)):
            rows += run(cases, threads, arguments.seconds)
    rows = quietest(rows)
    print("\n" + summary(rows))
    print("\n" + scaling(rows))
    command = "python -m benchmarks.cpu " + " ".join(sys.argv[1:])
    print(save(f"cpu_{native.active_implementation()}", command.strip(), rows, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

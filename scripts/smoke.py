"""Compares every implementation that runs on this processor with plain PyTorch, on shapes that fill no word or tile.

It runs in the environments of `make try-wheel` and `make test-arm`, and prints what the first import costs after torch.
"""

import importlib
import itertools
import time

import torch

START, BUSY = time.perf_counter(), time.process_time()
sk = importlib.import_module("stompp_kernels")
SECONDS, BUSY = time.perf_counter() - START, time.process_time() - BUSY
ops, reference = sk.ops, sk.ops.reference


def signs(x):
    return torch.where(x < 0, -1.0, 1.0)


def same(found, expected, what):
    if not torch.equal(found, expected):
        raise SystemExit(f"error: {what} differs from plain PyTorch")


def check_gemm(name, M, N, K):
    a, w = torch.randn(M, K), torch.randn(N, K)
    words, weight = ops.pack_signs(a), ops.pack_weight(w)
    same(words, reference.pack_signs(a), f"{name}: pack_signs of {M} x {K}")
    same(ops.unpack_signs(words, K), signs(a), f"{name}: unpack_signs of {M} x {K}")
    sums = (signs(a) @ signs(w).T).int()
    same(ops.bgemm(words, weight), sums, f"{name}: bgemm of {M} x {N} x {K}")
    scale, shift = torch.randn(N), torch.randn(N)
    affine = ops.bgemm(words, weight, ops.Affine(scale, shift))
    same(affine, sums * scale + shift, f"{name}: bgemm with a scale of {M} x {N} x {K}")


def check_conv(name, channels, size, kernel, groups):
    x, w = torch.randn(2, channels, size, size + 1), torch.randn(6 * groups, channels // groups, kernel, kernel)
    weight = ops.pack_conv_weight(w, groups)
    sums = ops.bconv2d(ops.pack_signs(x.permute(0, 2, 3, 1)), weight, padding=kernel // 2, groups=groups)
    expected = torch.nn.functional.conv2d(signs(x), signs(w), padding=kernel // 2, groups=groups)
    what = f"{name}: bconv2d of {channels} channels in {groups} groups, {kernel} x {kernel}"
    same(sums, expected.permute(0, 2, 3, 1).int(), what)
    # Integers, whose sums are exact in any order.
    x, w = torch.randint(-9, 10, (2, channels, size, size)).float(), torch.randn(12, channels, kernel, kernel)
    floats = ops.conv2d_binary_weight(x, ops.pack_binary_weight(w), torch.ones(12), padding=kernel // 2)
    same(floats, torch.nn.functional.conv2d(x, signs(w), padding=kernel // 2), f"{name}: conv2d_binary_weight")


def check_training(name, n):
    u, mask = torch.randn(n), ops.full_mask(n)
    ops.refresh_mask_(mask, n, 0.4, 1.0, seed=1, tensor_id=2, step=3)
    expected = ops.full_mask(n)
    reference.refresh_mask_(expected, n, 0.4, 1.0, 1, 2, 3)
    same(mask, expected, f"{name}: refresh_mask_ of {n}")
    same(ops.progressive(u, mask), reference.progressive(u, mask, "none", False), f"{name}: progressive of {n}")


def main():
    torch.manual_seed(0)
    found = [item.name for item in sk.implementations() if item.available and item.device == "cpu"]
    if "reference" in found:
        raise SystemExit("error: the compiled library did not load")
    for name in found:
        with sk.use_implementation(name):
            for shape in itertools.product((1, 3, 67, 130), (1, 10, 33), (1, 31, 70, 300, 1024)):
                check_gemm(name, *shape)
            for shape in ((40, 9, 3, 1), (64, 5, 1, 1), (33, 7, 5, 1), (96, 6, 3, 3)):
                check_conv(name, *shape)
            for n in (1, 63, 1000):
                check_training(name, n)
    print(f"imported {SECONDS:.2f} s after torch, {BUSY:.2f} s of them on a processor; right: {', '.join(found)}")


if __name__ == "__main__":
    main()

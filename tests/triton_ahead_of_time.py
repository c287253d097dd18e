"""Compiles the Triton kernels for GPUs that need not be there and prints, as JSON, what PTX and SASS they became.

Run by test_triton.py in a process of its own, where Triton compiles instead of interpreting.
"""

import json
import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stompp_kernels.ops.triton import kernels, launch

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
ARCHITECTURES = (80, 90, 100)
BIG = 1 << 28


def elementwise(dtype):
    return launch.elementwise(BIG, ITEMSIZE[dtype])


def variants():
    """(name, kernel, dtype of its floats, constants, warps)."""
    for dtype in ITEMSIZE:
        size = elementwise(dtype)
        stored = {"SURROGATE": 0, "MASK": kernels.STORED.value, "GATE": True, "BYTES": size.tile}
        yield f"forward-{dtype}", kernels.forward, dtype, stored, size.warps
        yield f"gate_backward-{dtype}", kernels.gate_backward, dtype, {"BYTES": size.tile}, size.warps
    size = elementwise("bf16")
    drawn = {"SURROGATE": 0, "MASK": kernels.DRAWN.value, "GATE": True, "BYTES": size.tile}
    yield "forward_drawn-bf16", kernels.forward, "bf16", drawn, size.warps
    approx_sign = {"SURROGATE": 3, "MASK": kernels.STORED.value, "BYTES": size.tile}
    yield "backward-bf16", kernels.backward, "bf16", approx_sign, size.warps
    yield "unpack_rows-bf16", kernels.unpack_rows, "bf16", {"BYTES": size.tile}, size.warps
    for limits in (False, True):
        constants = {"LIMITS": limits, "BYTES": size.tile}
        yield f"pack_rows-bf16-{limits}", kernels.pack_rows, "bf16", constants, size.warps
        constants = {"LIMITS": limits, "PIXELS": launch.planes(2).tile}
        yield f"pack_planes-bf16-{limits}", kernels.pack_planes, "bf16", constants, launch.planes(2).warps
    for dtype in ("bf16", "fp16", "fp32"):
        tile = launch.product(BIG, BIG)
        constants = {"BIAS": True, "ROWS": tile.rows, "OUTPUTS": tile.outputs}
        yield f"binary_weight-{dtype}", kernels.binary_weight, dtype, constants, tile.warps
    pooled, window = launch.pooled_words(), {"KERNEL_H": 3, "KERNEL_W": 3}
    yield "max_pool", kernels.max_pool, "bf16", {**window, "WORDS": pooled.tile}, pooled.warps
    yield "refresh", kernels.refresh, "bf16", {"WORDS": launch.random_words().tile}, launch.random_words().warps
    yield "permute", kernels.permute, "bf16", {"BYTES": launch.bit_gather().tile}, launch.bit_gather().warps


def signature(name, kernel, dtype, constants):
    types = {"u": dtype, "out": dtype, "grad": dtype, "x": dtype, "draw": "i64", "low": "fp32", "high": "fp32"}
    types.update({"mask": "u8", "gate": "u8", "words": "u8"})
    if name == "refresh":
        types["mask"] = "i32"
    if name == "permute":
        types["out"] = "u8"
    if name == "max_pool":
        types.update({"x": "i32", "out": "i32"})
        types.pop("words")
    if name.startswith("pack_planes"):
        types["words"] = "i32"
    if name.startswith("binary_weight"):
        types.update({"words": "i32", "scale": "fp32", "bias": "fp32"})
    wide = ("one_below", "redraw_below", "seed", "step", "tensor_id")
    pointers = {argument: f"*{kind}" for argument, kind in types.items()}
    numbers = {argument: "i64" if argument in wide else "i32" for argument in kernel.arg_names}
    return {a: "constexpr" if a in constants else pointers.get(a, numbers[a]) for a in kernel.arg_names}


def compile_for(architecture, name, kernel, dtype, constants, warps):
    kinds = signature(name, kernel, dtype, constants)
    sizes = ("n", "R", "K", "C", "I", "O")  # as Triton finds them to be: multiples of 16
    aligned = [i for i, a in enumerate(kernel.arg_names) if kinds[a].startswith("*") or a in sizes]
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(kernel.arg_names.index(a),): value for a, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


def accesses(text, pattern):
    found = {}
    for match in re.findall(pattern, text):
        found[match] = found.get(match, 0) + 1
    return found


def main():
    results = []
    for name, *rest in variants():
        # The kernels of one type are compiled for every architecture, those of the others for the newest but one.
        for architecture in ARCHITECTURES if rest[1] == "bf16" else (90,):
            compiled = compile_for(architecture, name, *rest)
            results.append(
                {
                    "name": name,
                    "architecture": architecture,
                    "ptx": accesses(compiled.asm["ptx"], r"\b((?:ld|st)\.global[.\w]*)"),
                    "sass": accesses(compiled.asm["sass"], r"\b((?:LDG|STG)[.\w]*)"),
                    "mma": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", compiled.asm["ptx"])),
                    "shared_bytes": compiled.metadata.shared,
                }
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()

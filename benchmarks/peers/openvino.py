"""OpenVINO: XNOR convolutions, which read floats, and whole float networks, converted from torch's.

A binary convolution is a FakeQuantize of two levels, which writes bits, and a BinaryConvolution. Its levels must be 0
and 1: with -1 and 1 the sums are wrong. So they are where weights lie as the specification's reference reads them,
highest bit of a byte first: the CPU's kernels read the lowest first. ``pad_value`` 0 leaves padded taps out.

It computes in bf16 by itself where the processor has it, so what it computes in is said to it. It chooses its
instructions by the processor alone: nothing holds it to AVX2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Call
from benchmarks.peers import extra
from benchmarks.peers.products import Candidate, Product, as_integers
from stompp_kernels.models.registry import Inputs

# Else each conversion tells OpenVINO's makers about itself, from a process that it forks beside running threads.
# OpenVINO does without where the package is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

FORMS = {"fp32": "f32", "bf16": "bf16"}  # ours -> OpenVINO's name


def missing() -> str:
    """Why there is no OpenVINO here; empty where there is."""
    return extra.missing("openvino")


def version() -> str:
    import openvino

    return openvino.__version__


def sides(product: Product, threads: int) -> dict[str, list[Candidate]]:
    """An XNOR convolution of floats, its binarization counted.

    It reads NCHW, which it brings into the order of its kernels itself, and writes theirs: with the input transposed by
    the model, OpenVINO 2026.4 ends by a segmentation fault.
    """
    return {"openvino xnor": [chain(product.x, [product.w], threads)]}


def chain(x: Tensor, weights: Sequence[Tensor], threads: int) -> Candidate:
    """Such convolutions of floats, each of the signs of what the one before gives."""
    run, result = _bound(_binary_convolutions(x, weights), x, threads, "f32")
    how = "FakeQuantize, BinaryConvolution"
    return Candidate(how, run, lambda _: result().permute(0, 3, 1, 2), as_integers)


def _binary_convolutions(x: Tensor, weights: Sequence[Tensor]) -> Any:
    """A model from floats in NCHW to floats in NHWC; +1 is a 1, and 0 in ``x`` is taken for -1.

    A sum of 0 is one of +1 and -1 in equal numbers, whose sign is +1: sums are compared with -0.5.
    """
    import openvino as ov
    from openvino import opset1 as ops

    def constant(value: float) -> Any:
        return ops.constant(np.full((1, 1, 1, 1), value, np.float32))

    def bits(values: Any, threshold: float) -> Any:
        return ops.fake_quantize(values, constant(threshold), constant(threshold), constant(0), constant(1), 2)

    sums = image = ops.parameter(list(x.shape), np.float32)
    for layer, w in enumerate(weights):
        weight = ov.Tensor(ov.Type.u1, ov.Shape(list(w.shape)))
        weight.data.reshape(-1)[:] = np.packbits(w.contiguous().numpy().reshape(-1) > 0, bitorder="little")
        read, one = bits(sums, -0.5 if layer else 0), [1, 1]
        sums = ops.binary_convolution(read, ov.op.Constant(weight), one, one, one, one, "xnor-popcount", 0.0)
    return ov.Model([ops.result(ops.transpose(sums, ops.constant(np.array([0, 2, 3, 1]))))], [image], "xnor")


def networks(model: torch.nn.Module, x: Inputs, threads: int) -> dict[str, tuple[Call, Callable[[], Tensor]]]:
    """For each of its forms a call on ``x``, and what returns the output that the last call wrote."""
    import openvino as ov

    converted = ov.convert_model(model, example_input=x)
    return {form: _bound(converted, x, threads, precision) for form, precision in FORMS.items()}


def _bound(converted: Any, x: Inputs, threads: int, precision: str) -> tuple[Call, Callable[[], Tensor]]:
    import openvino as ov

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = ov.Core().compile_model(converted, "CPU", options).create_infer_request()
    arrays = [t.contiguous().numpy() for t in (x.values() if isinstance(x, dict) else [x])]
    for i, array in enumerate(arrays):
        request.set_input_tensor(i, ov.Tensor(array, shared_memory=True))

    def call(kept: Any = arrays) -> None:  # the inputs' memory is the arrays'
        request.infer()

    return call, lambda: torch.from_numpy(request.get_output_tensor(0).data)

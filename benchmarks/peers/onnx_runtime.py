"""ONNX Runtime: fp32 and int8, from graphs of one node, its weights constants that it packs when it loads them.

Inputs and outputs are bound beforehand, so that nothing is copied. Its threads do not spin while others have their
turn. It chooses its instructions by the processor alone: nothing holds it to AVX2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Call
from benchmarks.peers import extra
from benchmarks.peers.products import ZERO_POINT, Candidate, Product, as_bytes, as_integers

Sides = dict[str, list[Candidate]]
Array = np.ndarray[Any, Any]

# Versions of the file format and of its operators that any release of the last years reads.
IR_VERSION, OPSET = 8, 13
OUTPUT_ZERO_POINT = 128


def missing() -> str:
    """Why there is no ONNX Runtime here; empty where there is."""
    return extra.missing("onnx", "onnxruntime")


def version() -> str:
    import onnxruntime

    return onnxruntime.__version__


def sides(product: Product, threads: int) -> Sides:
    return _convolutions(product, threads) if product.is_conv else _matrices(product, threads)


def session(model: bytes, threads: int, layouts: bool = True) -> Any:
    """An InferenceSession; without ``layouts`` convolutions keep NCHW."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if layouts else level.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound(running: Any, x: Array | dict[str, Array], shape: list[int], dtype: Any) -> tuple[Call, Callable[[], Tensor]]:
    """A call on ``x``, the only input or all of them by name, and what returns the output that the last call wrote."""
    import onnxruntime as ort

    given = x if isinstance(x, dict) else {running.get_inputs()[0].name: x}
    result = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype)
    binding = running.io_binding()
    for name, array in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_ortvalue_output(running.get_outputs()[0].name, result)

    def call(kept: dict[str, Array] = given) -> None:  # the inputs' memory is the arrays'
        running.run_with_iobinding(binding)

    return call, lambda: torch.from_numpy(result.numpy())


def one_node(op: str, x: Array, constants: dict[str, Array], inputs: list[str], out: Any, **attributes: Any) -> bytes:
    """A graph of one operator. ``inputs`` name its inputs in order: "x", or one of the constants."""
    from onnx import TensorProto, helper, numpy_helper

    domain = attributes.get("domain", "")
    node = helper.make_node(op, inputs, ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", getattr(TensorProto, out), None)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets).SerializeToString()


def _unsigned(x: Array) -> Array:
    return (x + ZERO_POINT).astype(np.uint8)


SCALES: dict[str, Array] = {
    "one": np.array(1, np.float32),
    "x_zero": np.array(ZERO_POINT, np.uint8),
    "w_zero": np.array(0, np.int8),
    "y_zero": np.array(OUTPUT_ZERO_POINT, np.uint8),
}
QUANTIZED = ["x", "one", "x_zero", "w", "one", "w_zero", "one", "y_zero"]


def _centred(y: Tensor) -> Tensor:
    return y.to(torch.int32) - OUTPUT_ZERO_POINT


def _matrices(product: Product, threads: int) -> Sides:
    x, w = product.x.numpy(), product.w.T.numpy()
    x8, w8 = _unsigned(x), w.astype(np.int8)
    shape = [x.shape[0], w.shape[1]]
    zeros = {name: SCALES[name] for name in ("x_zero", "w_zero")}
    fp32 = session(one_node("MatMul", x, {"w": w}, ["x", "w"], "FLOAT"), threads)
    to_int32 = one_node("MatMulInteger", x8, {"w": w8, **zeros}, ["x", "w", "x_zero", "w_zero"], "INT32")
    to_bytes = one_node("QLinearMatMul", x8, {"w": w8, **SCALES}, QUANTIZED, "UINT8")
    run, result = bound(fp32, x, shape, np.float32)
    run_int32, result_int32 = bound(session(to_int32, threads), x8, shape, np.int32)
    run_bytes, result_bytes = bound(session(to_bytes, threads), x8, shape, np.uint8)
    return {
        "onnxruntime fp32": [Candidate("MatMul", run, lambda _: result(), as_integers)],
        "onnxruntime int8": [
            Candidate("MatMulInteger to int32", run_int32, lambda _: result_int32(), as_integers),
            Candidate("QLinearMatMul to 8 bits", run_bytes, lambda _: _centred(result_bytes()), as_bytes),
        ],
    }


def _convolutions(product: Product, threads: int) -> Sides:
    x, w = product.x.contiguous().numpy(), product.w.contiguous().numpy()
    padding = {"pads": [1, 1, 1, 1]}
    model = one_node("Conv", x, {"w": w}, ["x", "w"], "FLOAT", **padding)
    shape = list(product.exact.shape)

    def fp32(how: str, layouts: bool) -> Candidate:
        run, result = bound(session(model, threads, layouts), x, shape, np.float32)
        return Candidate(how, run, lambda _: result(), as_integers)

    x8, w8 = _unsigned(x), w.astype(np.int8)
    nchw = one_node("QLinearConv", x8, {"w": w8, **SCALES}, QUANTIZED, "UINT8", **padding)
    run, result = bound(session(nchw, threads), x8, shape, np.uint8)

    # The form that its optimizer gives a convolution between others: no transposition to be paid.
    nhwc8 = np.ascontiguousarray(x8.transpose(0, 2, 3, 1))
    last = {**padding, "domain": "com.microsoft", "channels_last": 1}
    nhwc = one_node("QLinearConv", nhwc8, {"w": w8, **SCALES}, QUANTIZED, "UINT8", **last)
    run_last, result_last = bound(session(nhwc, threads), nhwc8, [shape[0], *shape[2:], shape[1]], np.uint8)
    return {
        "onnxruntime fp32": [fp32("Conv, blocked layout", True), fp32("Conv, NCHW", False)],
        "onnxruntime int8": [
            Candidate("QLinearConv, NCHW", run, lambda _: _centred(result()), as_bytes),
            Candidate("QLinearConv, NHWC", run_last, lambda _: _centred(result_last().permute(0, 3, 1, 2)), as_bytes),
        ],
    }

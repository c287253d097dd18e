"""A whole network: packed against torch's forms of it, and OpenVINO and ONNX Runtime on the same float network."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import Call, Case, Sides
from benchmarks.peers import onnx_runtime, openvino, torch_sides
from benchmarks.peers.fastest import in_turn
from stompp_kernels.bench.sides import Side, check, default_forms, folding, make_sides
from stompp_kernels.bench.subjects import Subject, call, device_of, untrained
from stompp_kernels.bench.turns import using_threads
from stompp_kernels.models.registry import Inputs

OPSET = 17
OURS = {"packed": "ours", "fast": "ours, fast float layers"}


@torch.no_grad()
def measure(
    subject: Subject, threads: int, seconds: float, with_onnx_runtime: bool, compile: bool = True, batch: int = 1
) -> dict[str, Any]:
    """A batch, in turns of two calls of which the second counts.

    Args:
        subject: with a packed network.
        compile: also let torch compile and package fp32, bf16 and packed, and take the fastest.

    Returns:
        A row of the suite's fields; operations are those of all layers, whatever they are computed in.

    Raises:
        ValueError: a result is wrong; nothing was timed.
    """
    x = subject.inputs(batch)
    assert subject.float_model is not None
    with using_threads(threads), folding():
        forms: dict[str, dict[str, Call]] = {}
        left_out = [name.removeprefix("torch ") for name in torch_sides.missing()]
        wanted = tuple(form for form in default_forms(device_of(x)) if form not in left_out)
        for side in make_sides(subject, x, wanted, compile)[0]:
            name = OURS.get(side.form, f"torch {side.form}")
            forms.setdefault(name, {})[side.how] = side.run
        if with_onnx_runtime:
            forms |= _onnx_runtime(subject.float_model, x, threads)
        if not openvino.missing():
            forms |= _openvino(subject.float_model, x, threads)
        case = _case(subject, x, batch)
        return in_turn(case, forms.pop("ours"), forms, threads, seconds)


def measure_untrained(name: str, threads: int, seconds: float, with_onnx_runtime: bool, batch: int) -> dict[str, Any]:
    """The same of a network of ``sk.models``, with random weights."""
    return measure(untrained(name), threads, seconds, with_onnx_runtime, batch=batch)


def _case(subject: Subject, x: Inputs, batch: int) -> Case:
    assert subject.packed is not None
    assert subject.float_model is not None
    with FlopCounterMode(display=False) as counter:
        result = call(subject.float_model, x)
    name = subject.name if batch == 1 else f"{subject.name}, batch {batch}"
    inputs = list(x.values()) if isinstance(x, dict) else [x]
    nbytes = sum(t.nbytes for t in [*inputs, result]) + sum(t.nbytes for t in subject.packed.state_dict().values())
    return Case(
        *("network", "network", name, (), _not_from_a_case),
        *(counter.get_total_flops(), nbytes, "float and binary"),
    )


def _not_from_a_case() -> Sides:
    raise TypeError("a network's sides are made and checked by stompp_kernels.bench")


def _onnx_runtime(model: torch.nn.Module, x: Inputs, threads: int) -> dict[str, dict[str, Call]]:
    """fp32, and what ONNX Runtime's quantization makes of it, weights by channel.

    For images that is its static one, calibrated on ``x``, for text its dynamic one, as its manual recommends.
    """
    expected = call(model, x)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "fp32.onnx"
        export(model, x, exported)
        int8 = quantized(exported, x)
        sessions = {
            "fp32": ("exported", onnx_runtime.session(exported.read_bytes(), threads)),
            "int8": (int8[0], onnx_runtime.session(int8[1].read_bytes(), threads)),
        }
    arrays = {n: t.numpy() for n, t in x.items()} if isinstance(x, dict) else x.contiguous().numpy()
    found = {}
    for form, (how, running) in sessions.items():
        run, result = onnx_runtime.bound(running, arrays, list(expected.shape), np.float32)

        def checked(run: Call = run, result: Any = result) -> Tensor:
            run()
            return result()

        check(Side(form, f"onnxruntime {how}", checked), expected)
        found[f"onnxruntime {form}"] = {how: run}
    return found


def _openvino(model: torch.nn.Module, x: Inputs, threads: int) -> dict[str, dict[str, Call]]:
    expected, found = call(model, x), {}
    for form, (run, result) in openvino.networks(model, x, threads).items():

        def checked(run: Call = run, result: Any = result) -> Tensor:
            run()
            return result()

        check(Side(form, f"openvino {form}", checked), expected)
        found[f"openvino {form}"] = {"converted": run}
    return found


def export(model: torch.nn.Module, x: Inputs, to: Path) -> None:
    """By torch's exporter for TorchScript, which needs no further package."""
    names = list(x) if isinstance(x, dict) else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(model, (x,), to, dynamo=False, opset_version=OPSET, input_names=names)


def quantized(network: Path, x: Inputs) -> tuple[str, Path]:
    """What quantized a network, and the file beside it that has the result."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class OneImage(CalibrationDataReader):
        def __init__(self, name: str, image: Tensor) -> None:
            self.left = [{name: image.contiguous().numpy()}]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    prepared, target = network.with_name("prepared.onnx"), network.with_name("int8.onnx")
    options = {"per_channel": True, "reduce_range": False, "weight_type": QuantType.QInt8}
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(x, dict):
            quantize_dynamic(network, target, **options)
            return "quantize_dynamic", target
        name = onnx_runtime.session(network.read_bytes(), 1).get_inputs()[0].name
        quant_pre_process(network, prepared, skip_symbolic_shape=True)  # the exporter wrote the shapes
        quantize_static(prepared, target, OneImage(name, x), activation_type=QuantType.QUInt8, **options)
    return "quantize_static", target

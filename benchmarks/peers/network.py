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
from stompp_kernels.bench.subjects import Subject
from stompp_kernels.bench.turns import using_threads

OPSET = 17
OURS = {"packed": "ours", "fast": "ours, fast float layers"}


@torch.no_grad()
def measure(
    subject: Subject, threads: int, seconds: float, with_onnx_runtime: bool, compile: bool = True, batch: int = 1
) -> dict[str, Any]:
    """A batch of images, in turns of two calls of which the second counts.

    Args:
        subject: of images, with a packed network.
        compile: also let torch compile and package fp32, bf16 and packed, and take the fastest.

    Returns:
        A row of the suite's fields; operations are those of all layers, whatever they are computed in.

    Raises:
        ValueError: a result is wrong; nothing was timed.
    """
    x = subject.inputs(batch)
    assert isinstance(x, Tensor)
    assert subject.float_model is not None
    with using_threads(threads), folding():
        forms: dict[str, dict[str, Call]] = {}
        left_out = [name.removeprefix("torch ") for name in torch_sides.missing()]
        wanted = tuple(form for form in default_forms(x.device) if form not in left_out)
        for side in make_sides(subject, x, wanted, compile)[0]:
            name = OURS.get(side.form, f"torch {side.form}")
            forms.setdefault(name, {})[side.how] = side.run
        if with_onnx_runtime:
            forms |= _onnx_runtime(subject.float_model, x, threads)
        if not openvino.missing():
            forms |= _openvino(subject.float_model, x, threads)
        case = _case(subject, x)
        return in_turn(case, forms.pop("ours"), forms, threads, seconds)


def _case(subject: Subject, x: Tensor) -> Case:
    assert subject.packed is not None
    assert subject.float_model is not None
    with FlopCounterMode(display=False) as counter:
        result = subject.float_model(x)
    name = subject.name if len(x) == 1 else f"{subject.name}, batch {len(x)}"
    nbytes = x.nbytes + result.nbytes + sum(t.nbytes for t in subject.packed.state_dict().values())
    return Case(
        *("network", "network", name, (), _not_from_a_case),
        *(counter.get_total_flops(), nbytes, "float and binary"),
    )


def _not_from_a_case() -> Sides:
    raise TypeError("a network's sides are made and checked by stompp_kernels.bench")


def _onnx_runtime(model: torch.nn.Module, x: Tensor, threads: int) -> dict[str, dict[str, Call]]:
    """fp32, and what ONNX Runtime's static quantization makes of it, calibrated on ``x``, weights by channel."""
    image, expected = x.contiguous().numpy(), model(x)
    exported = export(model, x)
    found = {}
    for form, how, network in (("fp32", "exported", exported), ("int8", "quantize_static", quantized(exported, image))):
        run, result = onnx_runtime.bound(
            onnx_runtime.session(network, threads), image, list(expected.shape), np.float32
        )

        def checked(run: Call = run, result: Any = result) -> Tensor:
            run()
            return result()

        check(Side(form, f"onnxruntime {how}", checked), expected)
        found[f"onnxruntime {form}"] = {how: run}
    return found


def _openvino(model: torch.nn.Module, x: Tensor, threads: int) -> dict[str, dict[str, Call]]:
    expected, found = model(x), {}
    for form, (run, result) in openvino.networks(model, x, threads).items():

        def checked(run: Call = run, result: Any = result) -> Tensor:
            run()
            return result()

        check(Side(form, f"openvino {form}", checked), expected)
        found[f"openvino {form}"] = {"converted": run}
    return found


def export(model: torch.nn.Module, x: Tensor) -> bytes:
    """By torch's exporter for TorchScript, which needs no further package."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(model, (x,), file, dynamo=False, opset_version=OPSET)
    return file.getvalue()


def quantized(network: bytes, image: onnx_runtime.Array) -> bytes:
    """After the pre-processing that ONNX Runtime's manual recommends."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class OneImage(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.left = [{name: image}]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    name = onnx_runtime.session(network, 1).get_inputs()[0].name
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source, prepared, target = (Path(folder) / f"{form}.onnx" for form in ("fp32", "prepared", "int8"))
        source.write_bytes(network)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # the exporter wrote the shapes
        quantize_static(
            prepared,
            target,
            OneImage(name),
            per_channel=True,
            reduce_range=False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()

"""OpenVINO: whole float networks, converted from torch's.

It computes in bf16 by itself where the processor has it, so what it computes in is said to it. It chooses its
instructions by the processor alone: nothing holds it to AVX2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Call
from benchmarks.peers import extra

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


def networks(model: torch.nn.Module, x: Tensor, threads: int) -> dict[str, tuple[Call, Callable[[], Tensor]]]:
    """For each of its forms a call on ``x``, and what returns the output that the last call wrote."""
    import openvino as ov

    converted = ov.convert_model(model, example_input=x)
    return {form: _bound(converted, x, threads, precision) for form, precision in FORMS.items()}


def _bound(converted: Any, x: Tensor, threads: int, precision: str) -> tuple[Call, Callable[[], Tensor]]:
    import openvino as ov

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = ov.Core().compile_model(converted, "CPU", options).create_infer_request()
    image = x.contiguous().numpy()
    request.set_input_tensor(ov.Tensor(image, shared_memory=True))

    def call(kept: Any = image) -> None:  # the input's memory is the array's
        request.infer()

    return call, lambda: torch.from_numpy(request.get_output_tensor(0).data)

"""The forms of a network that are timed against each other: torch's fp32, bf16 and int8, packed, and packed "fast"."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels import native
from stompp_kernels.bench.subjects import Subject, call, device_of
from stompp_kernels.conversion import convert
from stompp_kernels.conversion.cuda_graph import captured
from stompp_kernels.models.registry import Inputs
from stompp_kernels.nn import float_simulation
from stompp_kernels.ops.checks import check_choice
from stompp_kernels.progression.example_run import as_arguments

FORMS = ("fp32", "bf16", "int8", "packed", "fast")
FORMS_ON_GPU = ("fp32", "bf16", "packed")  # torch quantizes for the CPU, and float layers are fast there
# Equal signs go into the same float layers, whose sums another memory format or a compiler may group differently; a
# network that carries real values from block to block may then have a sign or two the other way.
_TOLERANCE = {"fp32": 1e-3, "packed": 1e-2, "fast": 1e-2}


@dataclass(frozen=True)
class Side:
    """One form of a network, ready to run on inputs that it holds.

    Attributes:
        form: of :data:`FORMS`.
        how: "eager", "compiled" or "packaged", see :func:`compiled` and :func:`packaged`; on a GPU one of the first
            two, as a CUDA graph.
        run: one call.
    """

    form: str
    how: str
    run: Callable[[], Tensor]

    @property
    def name(self) -> str:
        """The form and how it runs, as tables show it."""
        return f"{self.form} {self.how}"


def folding() -> AbstractContextManager[Any]:
    """Folds the constants of networks that are :func:`compiled` or :func:`packaged` inside this ``with`` block.

    Outside of it compiled ones compile again.
    """
    import torch._inductor.config as inductor

    return inductor.patch(freezing=True)


def compiled(network: nn.Module) -> Callable[..., Any]:
    """Compiles by ``torch.compile``, to be called within :func:`folding`.

    BatchNorm goes into convolutions, weights into oneDNN's own order. The code is held to AVX2 where torch is
    (``ATEN_CPU_CAPABILITY``).
    """
    return torch.compile(network, options=_inductor_options())


def default_forms(device: torch.device) -> tuple[str, ...]:
    """Returns the forms that differ on a device: float layers are fast only where bfloat16 is multiplied."""
    if device.type != "cpu":
        return FORMS_ON_GPU
    return FORMS if native.multiplies_bfloat16() else tuple(form for form in FORMS if form != "fast")


class NotPackagedError(ValueError):
    """A network of which torch makes no package; the message says why."""


def packaged(network: nn.Module, inputs: Inputs) -> Callable[..., Any]:
    """Compiles the network by AOTInductor for inputs of these shapes, and loads the result.

    It is a program in C++, which takes no step in Python, as in examples/cpp. To be called within :func:`folding`.

    Its loops are for as many threads as torch has now.

    Raises:
        NotPackagedError: torch.export or AOTInductor cannot.
    """
    args, kwargs = as_arguments(inputs)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on its own parts
        path = str(Path(folder) / "network.pt2")
        try:
            program = torch.export.export(network, args, kwargs)
            torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=_inductor_options())
            return torch._inductor.aoti_load_package(path)
        except Exception as error:  # whatever torch stumbles over
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise NotPackagedError(f"torch makes no package of it: {lines[0]}") from error


def _inductor_options() -> dict[str, Any]:
    held = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return {"cpp.simdlen": 256} if held else {}


@torch.no_grad()
def make_sides(
    subject: Subject, inputs: Inputs, forms: tuple[str, ...] | None = None, compile: bool = True
) -> tuple[list[Side], dict[str, str]]:
    """The subject's sides on these inputs, each of them run and checked; to be called within :func:`folding`.

    What has no float original has packed sides alone, and what cannot be converted has none of these.

    Args:
        forms: of :data:`FORMS`, on a GPU of :data:`FORMS_ON_GPU`; None: :func:`default_forms`.

    Returns:
        The sides, and the names of those that cannot be made, each with the reason.

    Raises:
        ValueError: an unknown form, int8 on a GPU, or a side whose result is wrong.
    """
    device = device_of(inputs)
    forms = default_forms(device) if forms is None else forms
    for form in forms:
        check_choice("forms", form, FORMS if device.type == "cpu" else FORMS_ON_GPU)
    torch._dynamo.reset()
    missing: dict[str, str] = {}
    sides = [side for form in forms for side in _sides_of(form, subject, inputs, compile, missing)]
    for side, expected in zip(sides, _expectations(subject, inputs, sides), strict=True):
        check(side, expected)
    return sides, missing


def _sides_of(form: str, subject: Subject, inputs: Inputs, compile: bool, missing: dict[str, str]) -> Iterator[Side]:
    if form == "packed":
        if subject.packed is not None:
            yield from _ways(form, subject.packed, inputs, compile, missing)
    elif form == "fast":
        if subject.packed is not None:
            yield from _fast(subject, inputs, compile, missing)
    elif subject.float_model is not None:
        images, device = isinstance(inputs, Tensor) and inputs.dim() == 4, device_of(inputs)
        model = copy.deepcopy(subject.float_model)
        if images:
            model = model.to(memory_format=torch.channels_last)
        if form == "fp32":
            yield from _ways(form, model, inputs, compile, missing)
        elif form == "bf16":
            # In software a compiler gains nothing: it would wait for the same conversions.
            compile = compile and _has_bfloat16(device)
            yield from _ways(form, model.bfloat16(), _as_bfloat16(inputs), compile, missing)
        else:
            yield Side(form, "eager", _runner(_int8(model, inputs), inputs))


def _fast(subject: Subject, inputs: Inputs, compile: bool, missing: dict[str, str]) -> Iterator[Side]:
    """Converts again, with each fast layer verified on the inputs; why that is not done goes into ``missing``."""
    if subject.model is None:
        missing["fast"] = "there is only a packed network, whose float layers are as they are"
    elif not native.multiplies_bfloat16():
        missing["fast"] = f"the implementation {native.active_implementation()!r} does not multiply bfloat16"
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how much the outputs change: these weights are random
            network = convert(subject.model, float_layers="fast", verify=inputs)
        yield from _ways("fast", network, inputs, compile, missing)


def _ways(form: str, network: nn.Module, inputs: Inputs, compile: bool, missing: dict[str, str]) -> Iterator[Side]:
    """A network's sides; why there is no packaged one goes into ``missing``."""
    yield Side(form, "eager", _runner(network, inputs))
    if compile:
        yield Side(form, "compiled", _runner(compiled(network), inputs))
    if compile and device_of(inputs).type == "cpu":
        try:
            yield Side(form, "packaged", _runner(packaged(network, inputs), inputs))
        except NotPackagedError as error:
            missing[f"{form} packaged"] = str(error)


def on_device(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call itself on the CPU; on a GPU a CUDA graph of it, which launches all its kernels at once."""
    return captured(run) if device.type == "cuda" else run


def _runner(network: Callable[..., Any], inputs: Inputs) -> Callable[[], Tensor]:
    return on_device(lambda: call(network, inputs), device_of(inputs))


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    return torch.backends.cpu.get_cpu_capability() != "AVX2" and torch.cpu._is_avx512_bf16_supported()


def _as_bfloat16(inputs: Inputs) -> Inputs:
    if isinstance(inputs, dict):
        return inputs  # tokens
    return inputs.bfloat16()


def _int8(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Torch's quantized network: dynamic for tokens, else static, calibrated on the inputs themselves.

    What torchao makes of an exported graph, compiled, runs the same oneDNN products in the same time.
    """
    from torch.ao import quantization
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and observers' remarks
        if isinstance(inputs, dict):
            return quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        prepared = prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (inputs,))
        prepared(inputs)
        return convert_fx(prepared)


def _expectations(subject: Subject, inputs: Inputs, sides: list[Side]) -> list[Tensor]:
    """What each side's result is compared with."""
    expected: dict[str, Tensor] = {}
    if subject.float_model is not None:
        original = call(subject.float_model, inputs)
        expected |= dict.fromkeys(("fp32", "bf16", "int8"), original)
    if subject.model is not None and any(side.form == "packed" for side in sides):
        with float_simulation():
            expected["packed"] = call(subject.model, inputs)
    elif subject.packed is not None:
        expected["packed"] = call(subject.packed, inputs)
    # Its layers were verified; with each in another precision the whole network may differ from the exact one.
    expected |= {side.form: side.run() for side in sides if side.name == "fast eager"}
    return [expected[side.form] for side in sides]


def check(side: Side, expected: Tensor) -> None:
    """Runs a side; ValueError unless fp32 and packed results are right, and others finite and of the right shape."""
    result = side.run()
    if result.shape != expected.shape or not bool(result.isfinite().all()):
        raise ValueError(f"{side.name} must give finite values of shape {list(expected.shape)}: not timed")
    if side.form in _TOLERANCE:
        error = float((result.float() - expected).norm() / expected.norm())
        if not error <= _TOLERANCE[side.form]:
            raise ValueError(
                f"{side.name} gives another result: it differs from what it must equal by {error:.2g} of its norm, "
                f"allowed is {_TOLERANCE[side.form]:g}: not timed"
            )

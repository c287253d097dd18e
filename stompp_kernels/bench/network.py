"""Everything that is measured of one network, as one dict for tables and results files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from stompp_kernels.bench.bound import Bound, bound
from stompp_kernels.bench.machine import clock_ms
from stompp_kernels.bench.memory import binarized_bytes, file_bytes, peak_bytes
from stompp_kernels.bench.sides import Side, default_forms, folding, make_sides
from stompp_kernels.bench.subjects import Subject, device_of
from stompp_kernels.bench.turns import Percentiles, sample_on, using_threads
from stompp_kernels.conversion.profile import LayerTime, profile


def measure(
    subject: Subject,
    batch: int,
    threads: int,
    forms: Sequence[str] | None = None,
    compile: bool = True,
    seconds: float = 10.0,
    at_least: int = 5,
) -> dict[str, Any]:
    """Checks, then times the forms of a network, in turns, where the subject is; one row of a table.

    On a GPU every side is a CUDA graph, calls are counted instead of seconds, and there is no profile.

    Args:
        batch: samples.
        threads: of torch, for all sides.
        forms: of :data:`FORMS`, on a GPU of :data:`FORMS_ON_GPU`; None: all that differ on this machine. bf16 in
            software takes so long that the others would hardly get a turn: it is timed apart from them, with a fifth of
            their time.
        compile: also time what torch.compile makes of them, and AOTInductor on the CPU.
        seconds: to time the forms for; profile and bound take a fifth and a third of it.
        at_least: calls of each side.

    Returns:
        ``network``, ``batch``, ``threads``; ``ms``: side to percentiles; ``best_ms``: form to the median of its fastest
        side; ``ratios``: form to its best_ms over that of packed; ``clock_ms``: see
        :func:`stompp_kernels.bench.machine.clock_ms`; ``profile``: a list of :class:`LayerTime`; ``bound``: see
        :class:`Bound`; ``missing``: sides that could not be made, and why, if there are any. Where the
        network cannot be converted ``reason`` says why, and there is nothing on packed.

    Raises:
        ValueError: an argument is not allowed, or a result is wrong; the message names it.
    """
    for name, value in (("batch", batch), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    with using_threads(threads), folding(), torch.no_grad():
        row = {"network": subject.name, "batch": batch, "threads": threads}
        return row | _measure(subject, batch, forms, compile, seconds, at_least)


def _measure(
    subject: Subject, batch: int, forms: Sequence[str] | None, compile: bool, seconds: float, at_least: int
) -> dict[str, Any]:
    inputs = subject.inputs(batch)
    device = device_of(inputs)
    forms = default_forms(device) if forms is None else forms
    sides, missing = make_sides(subject, inputs, tuple(forms), compile)
    clock = clock_ms()
    ms = _percentiles(sides, device, seconds, at_least)
    clock = max(clock, clock_ms())
    fastest = {form: min(_of(form, sides), key=lambda side: ms[side.name].p50) for form in forms if _of(form, sides)}
    best = {form: ms[side.name].p50 for form, side in fastest.items()}
    row: dict[str, Any] = {"ms": {name: asdict(values) for name, values in ms.items()}, "best_ms": best}
    row["clock_ms"] = clock
    if missing:
        row["missing"] = missing
    if subject.packed is None:
        row["reason"] = subject.reason
    if "packed" not in best:
        return row
    row["ratios"] = {form: value / best["packed"] for form, value in best.items() if form != "packed"}
    assert subject.packed is not None
    if device.type == "cpu":
        row["profile"] = [_layer(layer) for layer in profile(subject.packed, inputs, seconds / 5)]
    if subject.model is not None:
        row["bound"] = _bound(bound(subject.model, inputs, subject.packed, fastest["packed"].run, seconds / 3, compile))
    return row


def _of(form: str, sides: Sequence[Side]) -> list[Side]:
    return [side for side in sides if side.form == form]


def _percentiles(sides: Sequence[Side], device: torch.device, seconds: float, at_least: int) -> dict[str, Percentiles]:
    found: dict[str, Percentiles] = {}
    for apart in (False, True):
        turn = {side.name: side.run for side in sides if (side.form == "bf16" and device.type == "cpu") is apart}
        if turn:
            times = sample_on(device, turn, seconds / 5 if apart else seconds, 2 if apart else at_least, in_a_row=2)
            found |= {name: Percentiles.of(values) for name, values in times.items()}
    return found


def _layer(layer: LayerTime) -> dict[str, Any]:
    return {**asdict(layer), "gops": layer.gops}


def _bound(found: Bound) -> dict[str, Any]:
    derived = {name: getattr(found, name) for name in ("binary_ms", "ms")}
    return {**asdict(found), "float_layers": list(found.float_layers), **derived}


def sizes(subject: Subject, threads: int = 1) -> dict[str, Any]:
    """Bytes of a network: of its files, of its binarized layers alone, and of a process that loads and runs it.

    Returns:
        ``network``; ``file``, ``binarized`` and ``peak`` as :mod:`stompp_kernels.bench.memory` gives them. Where the
        packed network cannot be written to a file ``reason`` says why.
    """
    found: dict[str, Any] = {"network": subject.name, "file": {}, "peak": {}}
    if subject.model is not None and subject.packed is not None:
        found["binarized"] = binarized_bytes(subject.model, subject.packed)
    try:
        found["file"] = file_bytes(subject)
        found["peak"] = peak_bytes(subject, threads=threads)
    except ValueError as error:
        found["reason"] = str(error)
    return found

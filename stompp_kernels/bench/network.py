"""Everything that is measured of one network, as one dict for tables and results files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from stompp_kernels.bench.bound import Bound, bound
from stompp_kernels.bench.layers import LayerTime, profile
from stompp_kernels.bench.memory import binarized_bytes, file_bytes, peak_bytes
from stompp_kernels.bench.sides import FORMS, folding, make_sides
from stompp_kernels.bench.subjects import Subject
from stompp_kernels.measure import Percentiles, sample


def measure(
    subject: Subject,
    batch: int,
    threads: int,
    forms: Sequence[str] = FORMS,
    compile: bool = True,
    seconds: float = 10.0,
    at_least: int = 5,
) -> dict[str, Any]:
    """Checks, then times the forms of a network on the CPU, in turns, with a number of threads; one row of a table.

    Args:
        batch: samples.
        forms: of :data:`FORMS`; bf16 is timed apart from the others, with a fifth of their time.
        compile: also time what torch.compile makes of them.
        seconds: to time the forms for; profile and bound take a fifth of it each.
        at_least: calls of each side.

    Returns:
        ``network``, ``batch``, ``threads``; ``ms``: side to percentiles; ``best_ms``: form to the median of its fastest
        side; ``ratios``: form to its best_ms over that of packed; ``profile``: a list of :class:`LayerTime`; ``bound``:
        see :class:`Bound`, with ``ms`` and ``packed_over_bound``. Where the network cannot be converted ``reason`` says
        why, and there is nothing on packed.

    Raises:
        ValueError: a result is wrong; the message names the side.
    """
    if batch < 1 or threads < 1:
        raise ValueError(f"batch and threads must be at least 1, got {batch} and {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with folding(), torch.no_grad():
            return _measure(subject, batch, threads, tuple(forms), compile, seconds, at_least)
    finally:
        torch.set_num_threads(before)


def _measure(
    subject: Subject, batch: int, threads: int, forms: tuple[str, ...], compile: bool, seconds: float, at_least: int
) -> dict[str, Any]:
    inputs = subject.inputs(batch)
    sides = make_sides(subject, inputs, forms, compile)
    ms: dict[str, Percentiles] = {}
    # bf16 in software takes so long that the others would hardly get a turn.
    for slow in (False, True):
        turn = {side.name: side.run for side in sides if (side.form == "bf16") is slow}
        if turn:
            taken = sample(turn, seconds / 5 if slow else seconds, 2 if slow else at_least, 1 if slow else 2)
            ms |= {name: Percentiles.of(values) for name, values in taken.items()}
    best = {
        form: min(ms[side.name].p50 for side in sides if side.form == form)
        for form in forms
        if any(side.form == form for side in sides)
    }
    row: dict[str, Any] = {"network": subject.name, "batch": batch, "threads": threads}
    row |= {"ms": {name: asdict(values) for name, values in ms.items()}, "best_ms": best}
    if subject.packed is None:
        return {**row, "reason": subject.reason}
    if "packed" in best:
        row["ratios"] = {form: value / best["packed"] for form, value in best.items() if form != "packed"}
        row["profile"] = [_layer(layer) for layer in profile(subject.packed, inputs, seconds / 5)]
        if subject.model is not None:
            row["bound"] = _bound(bound(subject.model, inputs, seconds / 5, compile), best["packed"])
    return row


def _layer(layer: LayerTime) -> dict[str, Any]:
    return {**asdict(layer), "gops": layer.gops}


def _bound(found: Bound, packed_ms: float) -> dict[str, Any]:
    return {**asdict(found), "binary_ms": found.binary_ms, "ms": found.ms, "packed_over_bound": packed_ms / found.ms}


def sizes(subject: Subject, threads: int = 1) -> dict[str, Any]:
    """Bytes of a network: of its files, of its binarized layers alone, and of a process that loads and runs it."""
    found: dict[str, Any] = {"network": subject.name, "file": file_bytes(subject)}
    if subject.model is not None and subject.packed is not None:
        found["binarized"] = binarized_bytes(subject.model, subject.packed)
    found["peak"] = peak_bytes(subject, threads=threads)
    return found

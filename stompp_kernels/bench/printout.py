"""What the commands print of networks that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stompp_kernels.bench.sides import FORMS
from stompp_kernels.table import table

_GROUPED = 12  # rows of a profile by kind


def setting(row: dict[str, Any], every_layer: bool = True) -> str:
    """One row: latencies, the profile (by kind of layer unless ``every_layer``) and the bound; or what is wrong."""
    if "wrong" in row:
        return f"{row['network']}: {row['wrong']}"
    parts = [f"{row['network']}, batch {row['batch']}, {row['threads']} threads\n{latencies(row)}"]
    if "profile" in row:
        parts.append(profile_table(row) if every_layer else by_kind(row))
    if "bound" in row:
        parts.append(bound_line(row))
    if "reason" in row:
        parts.append(f"{row['network']} cannot be converted: {row['reason']}")
    return "\n\n".join(parts)


def closing(rows: Sequence[dict[str, Any]], bytes_rows: Sequence[dict[str, Any]]) -> str:
    """The tables at the end: all rows side by side, and the bytes of the networks where they were measured."""
    return "\n\n".join([comparison(rows), *([size_table(bytes_rows)] if bytes_rows else [])])


def comparison(rows: Iterable[dict[str, Any]]) -> str:
    """One line a network, batch and number of threads: the forms' times, ratios, and the bound.

    The ratio of the fastest calls is what a machine that other work disturbs tells most reliably.
    """
    cells, rows = [], list(rows)
    shown = [form for form in FORMS if form != "fast" or any(form in row["best_ms"] for row in rows)]
    for row in rows:
        best, ratios, limit = row["best_ms"], row.get("ratios", {}), row.get("bound")
        cells.append(
            (
                row["network"],
                row["batch"],
                row["threads"],
                *(f"{best[form]:.2f}" if form in best else "-" for form in shown),
                *(f"{ratios[form]:.2f}x" if form in ratios else "-" for form in ("fp32", "int8")),
                *(f"{_of_least(row, form):.2f}x" if form in ratios else "-" for form in ("fp32", "int8")),
                f"{limit['ms']:.2f}" if limit else "-",
                f"{limit['packed_over_bound']:.2f}x" if limit else row.get("wrong", row.get("reason", "-")),
            )
        )
    forms = (
        *(f"{form}, ms" for form in shown),
        "speedup over fp32",
        "speedup over int8",
        "fastest calls: over fp32",
        "fastest calls: over int8",
    )
    return table(("network", "batch", "threads", *forms, "bound, ms", "packed/bound"), cells)


def _of_least(row: dict[str, Any], form: str) -> float:
    """How much faster the fastest packed call was than the fastest of a form."""
    least = {name: values["least"] for name, values in row["ms"].items()}
    fastest = {key: min(ms for name, ms in least.items() if name.split()[0] == key) for key in (form, "packed")}
    return fastest[form] / fastest["packed"]


def latencies(row: dict[str, Any]) -> str:
    """One line a side: percentiles of a call, and samples a second at the median; and which sides are not there."""
    cells = [
        (
            side,
            *(f"{values[key]:.3f}" for key in ("least", "p50", "p90", "p99")),
            f"{1e3 * row['batch'] / values['p50']:.1f}",
            values["calls"],
        )
        for side, values in row["ms"].items()
    ]
    text = table(("side", "least, ms", "p50", "p90", "p99", "samples/s", "calls"), cells)
    return "\n".join([text, *(f"{side}: {reason}" for side, reason in row.get("missing", {}).items())])


def profile_table(row: dict[str, Any]) -> str:
    """Every layer of a profile, and their sum."""
    layers = row["profile"]
    cells = [
        (
            layer["name"],
            layer["kind"],
            f"{layer['ms']:.3f}",
            f"{100 * layer['share']:.1f} %",
            f"{layer['operations'] / 1e6:.1f}" if layer["operations"] else "",
            f"{layer['gops']:.0f}" if layer["operations"] else "",
        )
        for layer in layers
    ]
    total = sum(layer["ms"] for layer in layers)
    millions = sum(layer["operations"] for layer in layers) / 1e6
    cells.append(("sum", "", f"{total:.3f}", "100.0 %", f"{millions:.1f}", f"{millions / total:.0f}"))
    return table(("layer", "kind", "ms", "share", "million operations", "GOPS"), cells)


def by_kind(row: dict[str, Any]) -> str:
    """A profile summed up by kind of layer, the longest first."""
    sums: dict[str, list[float]] = {}
    for layer in row["profile"]:
        found = sums.setdefault(layer["kind"], [0, 0.0, 0.0])
        found[0] += 1
        found[1] += layer["ms"]
        found[2] += layer["operations"]
    longest = sorted(sums.items(), key=lambda item: -item[1][1])
    total = sum(values[1] for values in sums.values())
    cells = [
        (kind, int(n), f"{ms:.3f}", f"{100 * ms / total:.1f} %", f"{operations / ms / 1e6:.0f}" if operations else "")
        for kind, (n, ms, operations) in longest[:_GROUPED]
    ]
    return table(("kind", "calls", "ms", "share", "GOPS"), cells)


def bound_line(row: dict[str, Any]) -> str:
    """How the bound comes about."""
    limit = row["bound"]
    return (
        f"bound {limit['ms']:.3f} ms = float layers {limit['float_ms']:.3f} ms + binary products "
        f"{limit['binary_ms']:.3f} ms ({limit['binary_operations'] / 1e9:.2f} billion operations at bgemm's "
        f"{limit['bgemm_gops']:.0f} GOPS); packed / bound = {limit['packed_over_bound']:.2f}"
    )


def size_table(rows: Iterable[dict[str, Any]]) -> str:
    """Bytes of files, binarized layers and processes, in millions, and how much smaller they are packed."""
    cells = []
    for row in rows:
        binarized = row.get("binarized", {})
        pairs = (
            (row["file"].get("fp32"), row["file"].get("packed")),
            (binarized.get("fp32"), binarized.get("file")),
            (binarized.get("fp32"), binarized.get("memory")),
            (row["peak"].get("fp32"), row["peak"].get("packed")),
        )
        cells.append((row["network"], *(_pair(*pair) for pair in pairs)))
    return table(
        ("network", "file, MB", "binarized layers in the file", "the same in memory", "growth of a process"), cells
    )


def _pair(float_bytes: int | None, packed_bytes: int | None) -> str:
    if float_bytes is None or packed_bytes is None:
        known = float_bytes if packed_bytes is None else packed_bytes
        return "-" if known is None else f"{known / 1e6:.2f}"
    return f"{float_bytes / 1e6:.2f} to {packed_bytes / 1e6:.2f} ({float_bytes / packed_bytes:.1f}x)"

"""The page's sections on a GPU, from what `bash benchmarks/gpu_check.sh OUT` leaves in OUT."""

from __future__ import annotations

from html import escape

from benchmarks.report.data import Results, Row
from stompp_kernels.report.html import section, table


def sections(results: Results) -> list[str]:
    """One for each result file of a GPU that is there."""
    known = {"gpu_bgemm": _products, "gpu_progressive": _progressive, "gpu_rates": _rates}
    return [make(file["rows"]) for name, make in known.items() if (file := results.get(name)) is not None]


def _products(rows: list[Row]) -> str:
    cells = [
        [
            escape(row["group"]),
            escape(row["name"]),
            f"{row['ms']['ours']['median']:.4f}",
            f"{row['pops']:.3f}" if row.get("pops") else "",
            *(f"{row['ratios'][side]:.2f}x" if side in row["ratios"] else "" for side in ("bf16", "int8")),
            f"{100 * row['of_copy']:.0f} %" if "of_copy" in row else "",
        ]
        for row in rows
    ]
    about = "Products of bits against cuBLAS and cuDNN in bf16 and int8, packing against a copy of as many bytes."
    numbers = ("ms", "Pop/s", "bf16", "int8", "of a copy")
    return section("GPU: products and packing", about, table(("group", "case"), numbers, cells))


def _progressive(rows: list[Row]) -> str:
    cells = [
        [
            escape(row["group"]),
            escape(row["name"]),
            f"{row['median']:.3f}",
            f"{100 * row['of_copy']:.1f} %" if "of_copy" in row else "",
            f"{row['over_ours']:.2f}x" if "over_ours" in row else "",
            f"{row['kept_of_u']:.4f}" if "kept_of_u" in row else "",
        ]
        for row in rows
    ]
    about = "Passes against a copy, by the bytes that they cannot do without; both ways against PyTorch."
    numbers = ("ms", "of a copy", "of our time", "kept for backward, of u")
    return section("GPU: the progressive op", about, table(("tensor", "what"), numbers, cells))


def _rates(rows: list[Row]) -> str:
    cells = [[escape(row["name"]), f"{row['operations_per_s'] / 1e15:.3f}"] for row in rows]
    return section("GPU: instructions alone", "With nothing to load.", table(("instruction",), ("Pop/s",), cells))

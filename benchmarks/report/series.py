"""What each figure shows, as data for JSON: a picture is current if it was drawn from these.

Each function gives None where the result files that it needs are missing.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.report.data import PYTORCH, Results, Row, grouped, mean_ratio, pytorch_ms, sides, threads_of, title_of

SQUARE, ROWS = "M = N, K = 4096", "M rows, N = K = 4096"
NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "bireal18": "Bi-Real-18",
    "bert": "BERT-base",
    "mobilenet_v2": "MobileNetV2",
    "reactnet_a": "ReActNet-A",
    "bnext_t": "BNext-T",
    "binary_vit": "BinaryViT",
    "binary_vit+binary_attention": "BinaryViT, attention on bits",
}
REGIMES = {"ste": "StoMPP + STE", "ste_free": "StoMPP, STE-free", "vanilla_ste": "vanilla STE"}


def speedups(results: Results) -> Any:
    """Geometric means of each group of the suite, by side and number of threads."""
    panels = []
    for name, file in results.by_implementation("suite").items():
        rows = file["rows"]
        threads = threads_of(rows)
        groups = []
        for group, members in grouped(rows).items():
            names = dict.fromkeys(side for row in members for side in sides(row))
            ratios = {side: [mean_ratio(members, group, side, n) for n in threads] for side in names}
            groups.append({"group": group, "ratios": ratios})
        panels.append({"title": title_of(name), "threads": threads, "groups": groups})
    return panels or None


def roofline(results: Results) -> Any:
    """Each case's operations a byte and a second beside the ceilings of as many threads, and its share of the bound."""
    panels = []
    for name, file in results.by_implementation("suite").items():
        ceilings = results.ceilings(name)
        threads = min(threads_of(file["rows"]), default=0)
        rows = [row for row in file["rows"] if row["threads"] == threads]
        bounds = [(row, bound) for row in rows if (bound := ceilings.bound(row)) is not None]
        if not any(row["operations"] for row, _ in bounds):
            continue
        shares: dict[str, list[float]] = {}
        for row, bound in bounds:
            shares.setdefault(row["group"], []).append(bound.share(row["ms"]["ours"]["median"]))
        panels.append(
            {
                "title": title_of(name),
                "threads": threads,
                "peaks": {kind: rate / 1e9 for (kind, n), rate in ceilings.per_second.items() if n == threads},
                "read": [[size, rate / 1e9] for size, rate in ceilings.bandwidth[("read", threads)]],
                "points": [
                    {"kind": row["kind"], "group": row["group"], "at": [row["operations"] / row["bytes"], row["gops"]]}
                    for row, _ in bounds
                    if row["operations"]
                ],
                "shares": shares,
            }
        )
    return panels or None


def sizes(results: Results) -> Any:
    """GOPS of matrix products against their size, ours and PyTorch's, by number of threads."""
    panels = []
    for name, file in results.by_implementation("suite").items():
        for title, rows in (
            (SQUARE, [(M, row) for M, N, K, row in _products(file["rows"]) if M == N and K == 4096]),
            (ROWS, [(M, row) for M, N, K, row in _products(file["rows"]) if N == K == 4096]),
        ):
            lines = []
            for threads in threads_of(row for _, row in rows):
                points = sorted(((M, row) for M, row in rows if row["threads"] == threads), key=lambda point: point[0])
                ours = [[M, row["gops"]] for M, row in points]
                theirs = [[M, row["operations"] / pytorch_ms(row) / 1e6] for M, row in points]
                lines += [["ours", threads, ours], [PYTORCH, threads, theirs]]
            if lines:
                panels.append({"title": f"{title_of(name)}: {title}", "lines": lines})
    return panels or None


def _products(rows: Iterable[Row]) -> list[tuple[int, int, int, Row]]:
    found = []
    for row in rows:
        shape = re.fullmatch(r"(\d+) x (\d+) x (\d+)", row["name"])
        if shape is not None and row["group"] in ("bgemm", "bgemm few rows"):
            M, N, K = map(int, shape.groups())
            found.append((M, N, K, row))
    return found


def threads(results: Results) -> Any:
    """How many times as fast each group is with the most threads as with the fewest, ours and PyTorch's."""
    panels = []
    for name, file in results.by_implementation("suite").items():
        counts = threads_of(file["rows"])
        if len(counts) < 2:
            continue
        few, many = counts[0], counts[-1]
        groups = []
        for group, rows in grouped(file["rows"]).items():
            ms = {
                (row["name"], row["threads"]): {"ours": row["ms"]["ours"]["median"], PYTORCH: pytorch_ms(row)}
                for row in rows
            }
            pairs = [(ms[case, few], ms[case, many]) for case, n in ms if n == few and (case, many) in ms]
            if pairs:
                faster = {
                    side: statistics.geometric_mean(before[side] / after[side] for before, after in pairs)
                    for side in ("ours", PYTORCH)
                }
                groups.append({"group": group, "faster": faster})
        panels.append({"title": title_of(name), "few": few, "many": many, "groups": groups})
    return panels or None


def networks(results: Results) -> Any:
    """Milliseconds of whole networks, one image, with the fewest threads measured: each form's, and the bound."""
    panels, order = [], {name: place for place, name in enumerate(NETWORKS)}
    for name, file in results.by_implementation("networks").items():
        rows = [row for row in file["rows"] if row.get("batch") == 1 and row.get("best_ms")]
        few = min(threads_of(rows), default=0)
        shown = [
            {
                "network": NETWORKS.get(row["network"], row["network"]),
                "ms": row["best_ms"],
                "bound": row["bound"]["ms"] if "bound" in row else None,
            }
            for row in sorted(rows, key=lambda row: order.get(row["network"], len(order)))
            if row["threads"] == few
        ]
        if shown:
            panels.append({"title": title_of(name), "threads": few, "networks": shown})
    return panels or None


def step_time(results: Results) -> Any:
    """Time of a training step relative to that with nothing committed, and what is kept for backward."""
    file = results.get("training_speed")
    if file is None:
        return None
    found = [(re.fullmatch(r"(\d+)% committed", row["name"]), row) for row in file["rows"]]
    committed = [(int(match.group(1)), row) for match, row in found if match is not None]
    plain = [row for match, row in found if match is None]
    return {
        "committed": [percent for percent, _ in committed],
        "time": [1 / row["faster_than_0"] for _, row in committed],
        "kept_mbytes": [row["kept_mbytes"] for _, row in committed],
        "plain": {row["name"]: 1 / row["faster_than_0"] for row in plain},
    }


def depth(results: Results) -> Any:
    """Test accuracy against the number of binarized layers, a line a regime: mean, lowest and highest of the seeds."""
    file = results.get("depth_digits/report")
    if file is None:
        return None
    lines: dict[str, list[list[float]]] = {}
    for group in file["groups"]:
        regime, _, layers = group["group"].rpartition("_")
        if regime in REGIMES and layers.isdigit() and group["finished"] == len(group["seeds"]):
            accuracies = group["accuracies"]
            point = [int(layers), statistics.fmean(accuracies), min(accuracies), max(accuracies)]
            lines.setdefault(REGIMES[regime], []).append(point)
    return {regime: sorted(points) for regime, points in lines.items()} or None


def blockade(results: Results) -> Any:
    """What each group of the study set apart, with gradients behind and ahead, and its accuracies."""
    file = results.get("blockade_digits/report")
    return None if file is None else [[group["blockade"], group["accuracies"]] for group in file["groups"]]

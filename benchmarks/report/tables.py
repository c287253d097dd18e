"""The README's tables, as Markdown. Each function raises ValueError where a result file that it needs is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.report.data import PYTORCH, Results, mean_ratio

KERNELS = (  # text, group of the suite, side that is compared with
    ("`bgemm`, M and N of 256 to 4096, K of 1024 and 4096, and BERT's layers, against fp32", "bgemm", PYTORCH),
    ("`bgemm`, 1 to 8 rows, 4096 x 4096", "bgemm few rows", PYTORCH),
    ("`bconv2d`, ResNet's 3x3 layers, batch 1, bits to bits through thresholds, against fp32", "bconv2d bits", "fp32"),
    ("`bconv2d`, the same against torch's int8", "bconv2d bits", "int8"),
    ("`bconv2d`, the same, bits to float, against fp32", "bconv2d float", "fp32"),
    ("`bconv2d`, 1x1, bits to bits, against fp32", "bconv2d 1x1 bits", "fp32"),
    ("`bconv2d`, depthwise 3x3, bits to bits, against fp32", "bconv2d depthwise bits", "fp32"),
    ("floats with binary weights, linear, 1 to 8 rows, against PyTorch", "binary weight, linear, few rows", PYTORCH),
    ("floats with binary weights, ResNet's 3x3 layers, against PyTorch", "binary weight, conv 3x3", PYTORCH),
    ("`conv2d_float`, first layers in float, against PyTorch", "float conv, first layer", PYTORCH),
    ("`conv2d_float`, float projections of bits, against PyTorch", "float conv, projection of bits", PYTORCH),
    ("`progressive`, forward and backward of 1M to 16M elements, against PyTorch", "progressive", PYTORCH),
    ("`pack_outside`, BatchNorm + sign + packing, against PyTorch", "BatchNorm + sign + pack", PYTORCH),
)
THREADS = (1, 2)
NETWORKS = {
    "ResNet-18": "resnet18",
    "ResNet-50": "resnet50",
    "Bi-Real-18": "bireal18",
    "BERT-base, 128 tokens": "bert",
    "MobileNetV2": "mobilenet_v2",
    "ReActNet-A": "reactnet_a",
    "BNext-T": "bnext_t",
    "BinaryViT": "binary_vit",
}
FAST = "ours, fast float layers"
PEERS = {  # row, and group, case (all of the group if none) and our side of the comparison with other libraries
    "`bgemm`, 1 to 4096 rows": ("bgemm", "", "ours"),
    "`bconv2d`, ResNet's 3x3 layers, bits to bits": ("bconv2d bits", "", "ours"),
    "the same, bits to float": ("bconv2d float", "", "ours"),
    "the same, float to float, binarization counted": ("bconv2d from float", "", "ours"),
    "nine of these layers, bits between them, floats at both ends": ("chain of bconv2d", "", "ours"),
    "ResNet-18, float layers exact": ("network", "resnet18", "ours"),
    "ResNet-18, float layers fast": ("network", "resnet18", FAST),
    "ResNet-50, float layers exact": ("network", "resnet50", "ours"),
    "ResNet-50, float layers fast": ("network", "resnet50", FAST),
    "BERT-base, 128 tokens, float layers exact": ("network", "bert", "ours"),
    "BERT-base, 128 tokens, float layers fast": ("network", "bert", FAST),
}
SMALL = "resnet20_cifar10_small"
STUDY = {  # row: study, and group of it
    "StoMPP + STE by a modern recipe, from a float network": ("modern_cifar10_small", "all"),
    "StoMPP + STE (clip)": (SMALL, "ste_clip"),
    "StoMPP, STE-free": (SMALL, "ste_free_forward"),
    "the same in global order": (SMALL, "ste_free_global"),
    "the same in reverse order": (SMALL, "ste_free_reverse"),
    "vanilla STE, clip": (SMALL, "vanilla_clip"),
    "vanilla STE, approx_sign": (SMALL, "vanilla_approx_sign"),
    "vanilla STE, identity": (SMALL, "vanilla_identity"),
    "weights only, forward": (SMALL, "bwn_forward"),
    "weights only, reverse": (SMALL, "bwn_reverse"),
}


def summary(results: Results) -> str:
    """The speedup over torch's fp32 and int8 on one thread, by instruction set: convolutions, and two networks."""
    shown = {
        name: title for name, title in results.implementations("suite").items() if f"networks_{name}" in results.files
    }
    suites = [results.need(f"suite_{name}")["rows"] for name in shown]
    convolutions = [[mean_ratio(rows, "bconv2d bits", form, 1) for form in ("fp32", "int8")] for rows in suites]
    rows = [("ResNet's 3x3 convolutions, bits to bits", *map(_both, convolutions))]
    for title in ("ResNet-18", "BERT-base, 128 tokens"):
        ratios = [_network(results, NETWORKS[title], name)["ratios"] for name in shown]
        rows.append((f"{title}, the whole network", *(_both([of.get("fp32"), of.get("int8")]) for of in ratios)))
    return markdown(("one thread, batch 1: speedup over fp32 / int8", *shown.values()), rows)


def _both(ratios: Iterable[float | None]) -> str:
    return " / ".join(map(_times, ratios))


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"


def _network(results: Results, network: str, implementation: str) -> Any:
    """The row of a network, one sample on one thread."""
    rows = results.need(f"networks_{implementation}")["rows"]
    return next(row for row in rows if (row["network"], row["batch"], row["threads"]) == (network, 1, 1))


def demo(results: Results) -> str:
    """What `make demo` ends with, by regime."""
    columns = [_demo(results.need(name)["result"]) for name in ("demo_ste", "demo_ste_free")]
    rows = [(text, *(column[text] for column in columns)) for text in columns[0]]
    return markdown(("", "STE regime (clip)", "STE-free"), rows)


def _demo(result: Any) -> dict[str, str]:
    same = result["test_images"] - result["different_predictions"]
    size = result["binarized_fp32_bytes"] / result["binarized_packed_bytes"]
    ratios = [layer["float_ms"] / layer["packed_ms"] for layer in result["layers"]]
    float_ms, packed_ms = result["network_ms"]["64"]
    layer = "a binarized layer with BatchNorm and activation, torch fp32 to packed, batch 64"
    return {
        "test accuracy, fully binary": f"{result['accuracy']:.1f} %",
        "packed predictions equal to the float simulation's": f"{same} of {result['test_images']}",
        "binarized layers, fp32 to packed file": f"{size:.1f}x smaller",
        layer: f"{min(ratios):.1f}x to {max(ratios):.1f}x",
        "the whole network, batch 64": f"{float_ms / packed_ms:.1f}x",
    }


def kernels(results: Results) -> str:
    """Geometric means of the suite's groups with 1 / 2 threads, by instruction set; "-" where none was timed."""
    shown = results.implementations("suite")
    files = [results.need(f"suite_{name}")["rows"] for name in shown]
    rows = []
    for text, group, side in KERNELS:
        means = [[mean_ratio(rows, group, side, threads) for threads in THREADS] for rows in files]
        rows.append((text, *map(_both, means)))
    return markdown(("", *shown.values()), rows)


def networks(results: Results) -> str:
    """Whole networks on one thread held to AVX2."""
    sizes = {row["network"]: row["binarized"] for row in results.need("networks_avx2")["bytes"]}
    rows = []
    for title, name in NETWORKS.items():
        if name not in sizes:
            continue  # the kept file is older than the network
        row, size = _network(results, name, "avx2"), sizes[name]
        ratios = [f"{row['ratios'][form]:.1f}x" for form in ("fp32", "int8")]
        bound = f"{row['bound']['packed_over_bound']:.2f}x"
        smaller = f"{size['fp32'] / size['file']:.1f}x"
        rows.append((title, f"{row['best_ms']['packed']:.1f} ms", *ratios, bound, smaller))
    header = ("packed", "speedup over fp32", "speedup over int8", "packed / bound", "binarized layers smaller by")
    return markdown(("network, batch 1", *header), rows)


def networks_with_amx(results: Results) -> str:
    """Whole networks on one thread with AMX: exact, and with fast float layers against torch; empty if not measured."""
    file = results.get("networks_amx")
    if file is None:
        return ""
    timed = {row["network"] for row in file["rows"]}
    rows = []
    for title, name in NETWORKS.items():
        if name not in timed:
            continue
        ms = _network(results, name, "amx")["best_ms"]
        ratios = [ms[form] / ms["fast"] if form in ms else None for form in ("fp32", "bf16", "int8")]
        rows.append((title, f"{ms['packed']:.1f} ms", f"{ms['fast']:.1f} ms", *map(_times, ratios)))
    header = ("packed, exact", "packed, fast", "fast over fp32", "fast over bf16", "fast over int8")
    table = markdown(("network, batch 1", *header), rows)
    return f'On a server with AMX, one thread; "fast" is `float_layers="fast"`:\n\n{table}'


def peers(results: Results) -> str:
    """The other library, torch among them, that comes nearest in each group of cases on one thread.

    What a column's instruction set does not hold is left out.
    """
    shown = results.implementations("peers")
    files = [results.need(f"peers_{name}") for name in shown]
    cells = [[_nearest(file, *which) for which in PEERS.values()] for file in files]
    return markdown(("one thread: speedup over the nearest peer", *shown.values()), zip(PEERS, *cells, strict=True))


def _nearest(file: Mapping[str, Any], group: str, name: str = "", side: str = "ours") -> str:
    """The least geometric mean of a side's speedups over a peer that has every case of the group, or the named case."""
    rows = [row for row in file["rows"] if (row["group"], row["threads"]) == (group, 1)]
    rows = [row for row in rows if not name or row["name"] == name]
    ours = 1.0 if side == "ours" else mean_ratio(rows, group, side, 1)
    left_out = ("ours", *file.get("notes", ()))
    means = {}
    for peer in dict.fromkeys(peer for row in rows for peer in row["ratios"]):
        if ours and not peer.startswith(left_out) and all(peer in row["ratios"] for row in rows):
            means[peer] = (mean_ratio(rows, group, peer, 1) or math.inf) / ours
    nearest = min(means, key=means.__getitem__, default=None)
    return "-" if nearest is None else f"{means[nearest]:.1f}x, {nearest}"


def training_speed(results: Results) -> str:
    """A training step against one with nothing committed."""
    rows = [row for row in results.need("training_speed")["rows"] if row["name"].endswith("% committed")]
    return markdown(
        ("layers committed", *(row["name"].removesuffix("% committed") + " %" for row in rows)),
        [
            (
                "speed against 0 %, which takes the time of plain PyTorch",
                *(f"{row['faster_than_0']:.1f}x" for row in rows),
            ),
            ("MB kept for backward", *(f"{row['kept_mbytes']:.0f}" for row in rows)),
        ],
    )


def study(results: Results) -> str:
    """Mean and standard deviation over seeds of the studies on CIFAR-10, and the number of seeds."""
    rows = []
    for text, (name, wanted) in STUDY.items():
        group = next(group for group in results.need(f"{name}/report")["groups"] if group["group"] == wanted)
        accuracy = f"{group['accuracy']:.1f} ± {group['accuracy_std']:.1f} %"
        rows.append((text, accuracy, str(len(group["seeds"]))))
    header = ("ResNet-20 on 10,000 images of CIFAR-10 at 16x16", "test accuracy, every layer binary", "seeds")
    return markdown(header, rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return text.replace("|  |", "| |").replace("| --- |", "|---|").replace(" --- |", "---|")

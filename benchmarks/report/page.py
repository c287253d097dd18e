"""The page: figures, warnings, summaries, every case, and what was measured where."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from benchmarks.report import gpu
from benchmarks.report.data import PLAIN, Results, Row, grouped, threads_of, title_of
from benchmarks.roofline import BANDWIDTHS
from benchmarks.timing import slowed
from stompp_kernels.report.figures import Picture
from stompp_kernels.report.html import document, image, section, table

TITLE = "Benchmarks of stompp_kernels"
MACHINE = ("commit", "processor", "features", "implementation", "threads", "torch", "python", "date")


def page(results: Results, pictures: Sequence[Picture]) -> str:
    """The whole page; it holds the pictures and loads nothing."""
    parts = [
        f"<h1>{escape(TITLE)}</h1>",
        *(section(picture.title, picture.text, image(picture.png, picture.title)) for picture in pictures),
        section("Warnings", "What to know before a figure is believed.", _list(_warnings(results))),
        *_suites(results),
        *_peers(results),
        *_networks(results),
        *gpu.sections(results),
        *_ceilings(results),
        *_instructions(results),
        *_studies(results),
        section("Measured", "Each result file, what made it and on which machine.", _machines(results)),
    ]
    return document(TITLE, parts)


def _machines(results: Results) -> str:
    rows = []
    for name, file in results.files.items():
        machine = file.get("machine", {})
        held = " ".join(f"{key}={value}" for key, value in machine.items() if key.isupper())
        made = file.get("command") or results.command(name)
        about = (*(str(machine.get(key, "")) for key in MACHINE), f"{held} {made}".strip())
        rows.append([f"{escape(name)}.json", *map(escape, about)])
    return table(("file", *MACHINE, "made by"), (), rows)


def _warnings(results: Results) -> list[str]:
    found = [f"{name} is missing: {command} makes it." for name, command in results.missing().items()]
    for family in ("suite", "peers"):
        for name, file in results.by_implementation(family).items():
            of = f"{family}, {title_of(name)}"
            found += [f"{of}: {key}: refused, its result was wrong." for key in file.get("refused", ())]
            found += [f"{of}: {text}" for text in file.get("wrong", ())]
            timed = [row for row in file["rows"] if "clock_ms" in row]
            slow, many = slowed(timed), len(timed)
            found += [f"{of}: {slow} of {many} were measured while a core was slowed down."] if slow else []
    for name, file in results.by_implementation("networks").items():
        found += [
            f"networks, {title_of(name)}: {row['network']}: {row['wrong']}" for row in file["rows"] if "wrong" in row
        ]
    return found


def _list(lines: Iterable[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>" if items else "<p>None.</p>"


def _suites(results: Results) -> list[str]:
    parts = []
    for name, file in results.by_implementation("suite").items():
        about = "Times of the other side by ours: geometric mean of a group's cases, the least and the most."
        parts.append(section(f"Groups, {title_of(name)}", about, _groups(file["rows"])))
    for name, file in results.by_implementation("suite").items():
        about = (
            "Median milliseconds and the 20th and 80th percentile; the other sides' time by ours, median over turns; "
            "the bound by the measured ceilings, and the share of it that is reached; the core's clock, of its highest."
        )
        parts.append(section(f"Every case, {title_of(name)}", about, _cases(results, name, file["rows"])))
    return parts


def _groups(rows: Sequence[Row]) -> str:
    counts = threads_of(rows)
    cells = []
    for group, members in grouped(rows).items():
        for side in dict.fromkeys(side for row in members for side in row["ratios"]):
            by_threads = [
                [r["ratios"][side] for r in members if r["threads"] == n and side in r["ratios"]] for n in counts
            ]
            spread = [
                text
                for ratios in by_threads
                for text in (_mean(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "")
            ]
            cells.append([escape(group), escape(side), str(len({row["name"] for row in members})), *spread])
    headers = [text for n in counts for text in (f"mean, threads: {n}", f"range, threads: {n}")]
    return table(("group", "against"), ("cases", *headers), cells)


def _mean(ratios: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f}x" if ratios else ""


def _cases(results: Results, name: str, rows: Sequence[Row]) -> str:
    ceilings = results.ceilings(name)
    others = tuple(dict.fromkeys((*PLAIN, *(side for row in rows for side in row["ratios"]))))
    clock = min((row["clock_ms"] for row in rows), default=1.0)
    cells = []
    for row in rows:
        bound = ceilings.bound(row)
        ours = row["ms"]["ours"]
        limits = ["", "", ""]
        if bound is not None:
            limits = [_ms(1e3 * bound.seconds), bound.by, f"{100 * bound.share(ours['median']):.0f} %"]
        cells.append(
            [
                escape(row["group"]),
                escape(row["name"]),
                str(row["threads"]),
                _ms(ours["median"]),
                f"{_ms(ours['p20'])} to {_ms(ours['p80'])}" if "p20" in ours else "",
                *(_ratio(row, side) for side in others),
                f"{row['gops']:.0f} GOPS" if row["operations"] else f"{row['gbytes_per_s']:.1f} GB/s",
                *limits,
                f"{clock / row['clock_ms']:.2f}",
            ]
        )
    numbers = ("threads", "ms", "p20 to p80", *others, "speed", "bound, ms", "bound by", "share", "clock")
    return table(("group", "case"), numbers, cells)


def _ratio(row: Row, side: str) -> str:
    if side not in row["ratios"]:
        return ""
    low_high = "{:.2f} to {:.2f} ".format(*row["spread"][side]) if "spread" in row else ""
    how = row.get("how", {}).get(side, "")
    return f"{row['ratios'][side]:.2f}x<small>{low_high}{escape(how)}</small>"


def _ms(value: float) -> str:
    return f"{value:.4g}"


def _peers(results: Results) -> list[str]:
    parts = []
    for name, file in results.by_implementation("peers").items():
        others = tuple(dict.fromkeys(side for row in file["rows"] for side in row["ratios"]))
        cells = [
            [
                escape(row["group"]),
                escape(row["name"]),
                str(row["threads"]),
                _ms(row["ms"]["ours"]["median"]),
                *(_ratio(row, side) for side in others),
            ]
            for row in file["rows"]
        ]
        content = table(("group", "case"), ("threads", "ours, ms", *others), cells)
        remarks = [f"{peer} is left out: {reason}" for peer, reason in file.get("missing", {}).items()]
        remarks += [f"{peer} {version}" for peer, version in file.get("versions", {}).items()]
        remarks += [f"{peer}: {note}" for peer, note in file.get("notes", {}).items()]
        content += _list(remarks) if remarks else ""
        parts.append(section(f"Other libraries, {title_of(name)}", "Their time by ours.", content))
    return parts


def _networks(results: Results) -> list[str]:
    parts = []
    for name, file in results.by_implementation("networks").items():
        rows = [row for row in file["rows"] if row.get("best_ms")]
        forms = tuple(dict.fromkeys(form for row in rows for form in row["best_ms"]))
        cells = [
            [
                escape(row["network"]),
                str(row["batch"]),
                str(row["threads"]),
                *(_ms(row["best_ms"][form]) if form in row["best_ms"] else "" for form in forms),
                *(f"{row['ratios'][form]:.2f}x" if form in row["ratios"] else "" for form in forms if form != "packed"),
                *(
                    [_ms(row["bound"]["ms"]), f"{row['bound']['packed_over_bound']:.2f}x"]
                    if "bound" in row
                    else ["", ""]
                ),
            ]
            for row in rows
        ]
        ratios = (f"speedup over {form}" for form in forms if form != "packed")
        numbers = ("batch", "threads", *(f"{form}, ms" for form in forms), *ratios, "bound, ms", "packed / bound")
        about = "The best of eager, compiled and packaged by AOTInductor, medians."
        parts.append(section(f"Networks, {title_of(name)}", about, table(("network",), numbers, cells)))
    return parts


def _ceilings(results: Results) -> list[str]:
    parts = []
    for name, file in results.by_implementation("ceilings").items():
        cells = [
            [
                escape(row["name"]),
                str(row["threads"]),
                f"{row['bytes']:,}" if row["name"] in BANDWIDTHS else "",
                f"{row['bytes_per_second'] / 1e9:,.1f} GB/s"
                if row["name"] in BANDWIDTHS
                else f"{row['per_second'] / 1e9:,.0f} GOPS",
            ]
            for row in file["rows"]
        ]
        about = "What the machine does on products in registers alone, and on reading and copying alone."
        content = table(("ceiling",), ("threads", "bytes of a thread", "speed"), cells)
        parts.append(section(f"Ceilings, {title_of(name)}", about, content))
    return parts


def _instructions(results: Results) -> list[str]:
    file = results.get("instructions")
    if file is None:
        return []
    cells = [[escape(row["case"]), escape(row["implementation"]), f"{row['per_256']:.3f}"] for row in file["rows"]]
    content = table(("case", "implementation"), ("instructions per 256 products",), cells)
    return [section("Instructions", "Counted by callgrind.", content)]


def _studies(results: Results) -> list[str]:
    parts = []
    for name, file in results.files.items():
        if not name.endswith("/report"):
            continue
        cells = [_study_row(group) for group in file["groups"]]
        content = table(("group",), ("seeds", "finished", "test accuracy, %", "standard deviation"), cells)
        study = name.removesuffix("/report")
        parts.append(section(f"Study {study}", "Every layer binary at the end; means over seeds.", content))
    return parts


def _study_row(group: dict[str, Any]) -> list[str]:
    values = (group.get(key) for key in ("accuracy", "accuracy_std"))
    texts = ("" if value is None else f"{value:.1f}" for value in values)
    return [escape(group["group"]), str(len(group["seeds"])), str(group["finished"]), *texts]

"""Takes every network of the corpus through the package, and writes what became of it to docs/corpus.csv.

    PYTHONPATH=tests python -m corpus
    PYTHONPATH=tests python -m corpus --only vit --table build/corpus.csv
    PYTHONPATH=tests python -m corpus --rest
    PYTHONPATH=tests python -m corpus --speed

A row is written as soon as its network is done; rows of networks that --only leaves out stay. The exit status is 1
where less than 95 % of the networks that are prepared convert equal to the float simulation, save, load equal and
export. With --speed nothing is written: each network is timed for one sample, packed and float in turns, and the exit
status is 1 where a packed one is slower by more than 5 % and sk.convert did not say so. That needs a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from corpus import by_hand, by_strangers, by_timm, by_torchvision, by_transformers
from corpus.journey import Journey, travel
from corpus.speed import SLOWER, compare

LIBRARIES = ("torchvision", "timm", "transformers")
NETWORKS = [
    *(by_hand.NETWORKS + by_strangers.NETWORKS + by_torchvision.NETWORKS),
    *(by_timm.NETWORKS + by_transformers.NETWORKS),
]
NEEDED = 0.95
TABLE = Path(__file__).resolve().parents[2] / "docs" / "corpus.csv"
COLUMNS = ("network", "binary layers", "binary weights", "saved", "exported", "what failed")
# These are compiled and packaged too, which takes a minute each.
COMPILED = ("resnet18", "vit", "DenseNet", "BERT", "M5", "MLP-Mixer")
PACKAGED = ("torchvision resnet18", "MLP-Mixer")


@dataclass(frozen=True)
class Row:
    """A row of the table, as text."""

    cells: tuple[str, ...]

    @classmethod
    def of(cls, journey: Journey) -> Row:
        failures = "; ".join(f"{stage}: {_first_sentence(why)}" for stage, why in journey.failures.items())
        return cls(
            (
                journey.name,
                f"{journey.binarized} of {journey.layers}" if journey.layers else "none",
                f"{journey.share:.0%}",
                "yes" if "save and load" in journey.reached else "no",
                "yes" if "export" in journey.reached else "no",
                failures,
            )
        )

    @property
    def prepared(self) -> bool:
        return not self.cells[5].startswith("prepare:")

    @property
    def whole(self) -> bool:
        return not self.cells[5]


def _first_sentence(why: str) -> str:
    line = " ".join(why.split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def main() -> int:
    parser = argparse.ArgumentParser(prog="corpus", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="take the networks whose name contains this text")
    parser.add_argument("--rest", action="store_true", help="leave out the networks that the table has already")
    parser.add_argument("--speed", action="store_true", help="time packed and float networks, and write no table")
    parser.add_argument("--table", type=Path, default=TABLE, help="the file to write, default docs/corpus.csv")
    arguments = parser.parse_args()
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        print(f"the corpus needs {', '.join(missing)}: pip install --no-deps {' '.join(missing)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    if arguments.speed:
        return _compare_speeds(arguments.only)
    rows = {row.cells[0]: row for row in _read(arguments.table)}
    for network in NETWORKS:
        if arguments.only not in network.name or (arguments.rest and network.name in rows):
            continue
        compiled, packaged = (any(part in network.name for part in parts) for parts in (COMPILED, PACKAGED))
        rows[network.name] = Row.of(travel(network, compiled, packaged))
        print(*rows[network.name].cells, sep=" | ", flush=True)
        _write(arguments.table, [rows[one.name] for one in NETWORKS if one.name in rows])
    prepared = [row for row in rows.values() if row.prepared]
    whole = [row for row in prepared if row.whole]
    print(f"{len(rows)} networks, {len(prepared)} prepared, {len(whole)} of these through all stages")
    return 0 if len(whole) >= NEEDED * len(prepared) else 1


def _compare_speeds(only: str) -> int:
    prepared = {row.cells[0] for row in _read(TABLE) if row.prepared}
    speeds = []
    for network in NETWORKS:
        if only in network.name and network.name in prepared:
            speed = compare(network, seconds=0.5)
            speeds.append(speed)
            said = "  SLOWER, AND NOTHING SAYS SO" if speed.is_silent else "  warned of" if speed.warned else ""
            print(
                f"{speed.name:40} {speed.float_ms:9.3f} ms {speed.packed_ms:9.3f} ms {speed.ratio:6.2f}{said}",
                flush=True,
            )
    slower, silent = sum(speed.ratio > SLOWER for speed in speeds), sum(speed.is_silent for speed in speeds)
    print(f"{len(speeds)} networks, {slower} slower packed by more than 5 %, of which {silent} without a warning")
    return int(silent > 0)


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [Row(tuple(cells)) for cells in list(csv.reader(file))[1:]]


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *(row.cells for row in rows)])


if __name__ == "__main__":
    sys.exit(main())

"""Takes every network of the corpus through the package, and writes what became of it to docs/corpus.csv.

    PYTHONPATH=tests python -m corpus
    PYTHONPATH=tests python -m corpus --only vit --table build/corpus.csv
    PYTHONPATH=tests python -m corpus --rest

A row is written as soon as its network is done; rows of networks that --only leaves out stay. The exit status is 1
where less than 95 % of the networks that are prepared convert equal to the float simulation, save, load equal and
export.
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
    parser.add_argument("--table", type=Path, default=TABLE, help="the file to write, default docs/corpus.csv")
    arguments = parser.parse_args()
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        print(f"the corpus needs {', '.join(missing)}: pip install --no-deps {' '.join(missing)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
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

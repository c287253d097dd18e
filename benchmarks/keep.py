"""What the repository keeps of result files: `python -m benchmarks.keep NAME`.

Result files hold every percentile and every layer, and are not in the repository. This writes what tables and figures
need of them to one file for each machine, benchmarks/results/NAME.json, a row a line under the names of its columns:

    python -m benchmarks.keep emerald_rapids --results build/results
    python -m benchmarks.keep studies --results runs

Files that are not in the folder stay in NAME.json as they are; with ``--replace`` they are dropped. With ``--add`` rows
of a file that is in both stay too, where it has none of the same case.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.data import DEFAULTS, KEPT, Results
from benchmarks.timing import RESULTS
from stompp_kernels.files import replacing

_DIGITS = 5
_DROPPED = ("op", "how", "spread", "profile", "gops", "gbytes_per_s")
_NETWORK = ("network", "batch", "threads", "best_ms", "ratios", "bound", "wrong", "reason", "missing")
_BOUND = ("ms", "packed_over_bound")
_OUTPUT = re.compile(r" --(?:output|results) \S+")  # a folder of the machine that ran it


def shortened(value: Any) -> Any:
    """The same with numbers of five digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: shortened(item) for key, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list) else value


def row_to_keep(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what no table or figure shows, what follows from the rest, and defaults.

    Of times that were a median and percentiles by side, our median is left: the others are our time by their ratio.
    """
    if "network" in row and "best_ms" in row:
        kept = {key: row[key] for key in _NETWORK if key in row}
        if "bound" in kept:
            kept["bound"] = {key: kept["bound"][key] for key in _BOUND}
        return kept
    kept = {key: value for key, value in row.items() if key not in _DROPPED and DEFAULTS.get(key) != value}
    if isinstance(kept.get("ms"), Mapping):
        kept["ms"] = kept["ms"]["ours"]["median"]
    return kept


def file_to_keep(content: Mapping[str, Any]) -> dict[str, Any]:
    """A result file's content as the repository keeps it."""
    kept = dict(content)
    if "command" in kept:
        kept["command"] = _OUTPUT.sub("", kept["command"])
    if "rows" in kept:
        kept["rows"] = [row_to_keep(row) for row in kept["rows"]]
    kept.pop("runs", None)  # of a study: its groups are its summary
    return {key: in_columns(value) if _are_rows(value) else value for key, value in shortened(kept).items()}


def added(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A kept file with the rows of another in the place of those of the same case; the machine stays the first's.

    The groups of a study are rows too.
    """
    key = "groups" if "groups" in after else "rows"
    cases = {}
    for file in (before, after):
        columns, *rows = file[key] or [[]]
        cases |= {_case(row): row for row in (dict(zip(columns, row, strict=False)) for row in rows)}
    commands = dict.fromkeys(file["command"] for file in (before, after) if "command" in file)
    command = {"command": "; ".join(commands)} if commands else {}
    return {**after, **before, **command, key: in_columns(list(cases.values()))}


def _case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in ("group", "name", "network", "batch", "threads"))


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def in_columns(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The names of all columns, then a list of values for each row: None where it has none, up to its last."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    filled = ([column for column in columns if row.get(column) is not None] for row in rows)
    ends = [columns.index(names[-1]) + 1 if names else 0 for names in filled]
    return [columns, *([row.get(column) for column in columns[:end]] for row, end in zip(rows, ends, strict=True))]


def text_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON of kept files, with a line for each row."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_file_text(content)}" for name, content in files.items()) + "\n}\n"


def _file_text(content: Mapping[str, Any]) -> str:
    entries = []
    for key, value in content.items():
        rows = isinstance(value, list) and value and isinstance(value[0], list)
        text = "[\n" + ",\n".join(map(_compact, value)) + "\n]" if rows else _compact(value)
        entries.append(f"{json.dumps(key)}: {text}")
    return "{" + ",\n".join(entries) + "}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keep", description=__doc__)
    parser.add_argument("name", help="name of the file in benchmarks/results, without .json; usually of the machine")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files (build/results)")
    parser.add_argument("--replace", action="store_true", help="drop what NAME.json holds of other result files")
    parser.add_argument("--add", action="store_true", help="keep the rows of other cases of each result file")
    arguments = parser.parse_args()
    path = KEPT / f"{arguments.name}.json"
    try:
        found = Results(arguments.results).files
        before = json.loads(path.read_text()) if path.exists() and not arguments.replace else {}
    except ValueError as error:
        parser.error(str(error))
    if not found:
        parser.error(f"{str(arguments.results)!r} holds no result file")
    kept = {name: file_to_keep(content) for name, content in found.items()}
    if arguments.add:
        kept = {name: added(before[name], file) if name in before else file for name, file in kept.items()}
    with replacing(path) as file:
        file.write(text_of({**before, **kept}).encode())
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

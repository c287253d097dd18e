"""The `stompp` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stompp_kernels import __version__, native
from stompp_kernels.ops.checks import SURROGATES
from stompp_kernels.progression.stompp import REGIMES
from stompp_kernels.table import table
from stompp_kernels.training.loop import Recipe


def _demo(arguments: argparse.Namespace) -> int:
    from stompp_kernels.training import demo  # pulls in rich and scikit-learn

    a = arguments
    demo.run(a.regime, a.surrogate, a.seed, a.epochs, a.output, a.results)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    rows = [
        (i.name, i.device, "active" if i.active else "available" if i.available else i.reason, i.description)
        for i in native.implementations()
    ]
    print(table(("implementation", "device", "status", "method"), rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stompp", description="Train binary networks with StoMPP, run them on bits.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train, convert, check and time a binary network on handwritten digits")
    demo.add_argument("--regime", choices=REGIMES, default="ste", help="gradient of frozen entries (default: ste)")
    demo.add_argument(
        "--surrogate", choices=SURROGATES[1:], default="clip", help="of the regimes that have one (default: clip)"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--epochs", type=int, default=Recipe.epochs)
    demo.add_argument("--output", type=Path, help="keep the packed network in this file")
    demo.add_argument("--results", type=Path, help="write what the table shows to this JSON file")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="list the implementations and which ones run")
    info.set_defaults(run=_info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors that a user can mend are one line and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, ImportError, FileNotFoundError) as error:
        print(f"stompp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())

"""The `stompp` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from stompp_kernels import __version__
from stompp_kernels.exit_status import run
from stompp_kernels.ops.checks import SURROGATES
from stompp_kernels.progression.settings import REGIMES

# Each command imports what it runs: `stompp info` must not wait for the training libraries.

# Flags of `train` and `ablate` that change a value of the recipe.
_RECIPE_FLAGS = {
    "--model": ("model.name", "a registered model, or module:function"),
    "--binarize": ("model.binarize", "what is binarized: both, weights or nothing"),
    "--dataset": ("data.name", "data set: digits, cifar10, cifar100, imagenet, sst2 or module:function"),
    "--data": ("data.path", "folder of the data set"),
    "--regime": ("progression.regime", "gradient of frozen entries: ste_free, ste or vanilla_ste"),
    "--surrogate": ("progression.surrogate", "surrogate gradient: clip, identity or approx_sign"),
    "--order": ("progression.order", "order of the windows: forward, reverse or global"),
    "--init-from": ("init_from", "weights to start from: the folder of a run, or a file with a state dict"),
    "--epochs": ("epochs", "number of epochs"),
    "--batch-size": ("batch_size", "samples per optimizer step, over all processes"),
    "--lr": ("optimizer.lr", "learning rate"),
    "--seed": ("seed", "seed of weights, masks, order of samples and augmentation"),
}


def _demo(arguments: argparse.Namespace) -> int:
    from stompp_kernels.training import demo

    a = arguments
    if a.surrogate is not None and a.regime == "ste_free":
        raise ValueError(f"surrogate has no effect with regime 'ste_free', got {a.surrogate!r}")
    demo.run(a.regime, a.surrogate or "clip", a.seed, a.epochs, a.output, a.results)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from stompp_kernels.installation import lines

    print("\n".join(lines(__version__)))
    return 0


def _changes(arguments: argparse.Namespace) -> list[str]:
    values = vars(arguments)
    flags = {key: values[flag.strip("-").replace("-", "_")] for flag, (key, _) in _RECIPE_FLAGS.items()}
    return [*arguments.set, *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def _train(arguments: argparse.Namespace) -> int:
    from stompp_kernels.training.recipe import read_recipe
    from stompp_kernels.training.saved_run import RECIPE
    from stompp_kernels.training.trained import check_trusted
    from stompp_kernels.training.trainer import train

    path, output, changes = arguments.recipe, arguments.output, _changes(arguments)
    if path is None and arguments.resume:
        if output is not None and (output / RECIPE).exists():
            path = output / RECIPE
            check_trusted(read_recipe(path), arguments.trust)
        elif not changes:
            where = "" if output is None else f": {str(output)!r} has no {RECIPE}"
            raise ValueError(f"--resume needs the run's recipe, or --output with the folder of a run{where}")
    recipe = read_recipe(path, changes)
    folder = output or Path("runs") / f"{recipe.name}_seed{recipe.seed}"
    train(recipe, folder, device=arguments.device, resume=arguments.resume, tensorboard=arguments.tensorboard)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from stompp_kernels.training.trained import evaluate_trained, load_trained, note_packed

    model, data, recipe = load_trained(
        arguments.run, arguments.checkpoint, arguments.data, arguments.device, arguments.trust
    )
    accuracy, loss = evaluate_trained(model, data, recipe, arguments.packed)
    if arguments.packed and arguments.checkpoint == "last":
        note_packed(arguments.run, accuracy=accuracy)
    print(f"accuracy {accuracy:.2f} %  loss {loss:.4f}  {data.test_size} samples of {data.name}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from stompp_kernels.files import check_can_be_written
    from stompp_kernels.terminal import terminal
    from stompp_kernels.training.trained import convert_trained, load_trained, note_packed

    check_can_be_written(arguments.output)
    model, _, _ = load_trained(arguments.run, arguments.checkpoint, arguments.data, trust=arguments.trust)
    size = convert_trained(model, arguments.output, terminal())
    if arguments.checkpoint == "last":
        note_packed(arguments.run, bytes=size)
    print(f"{arguments.output}: {size:,} bytes")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from stompp_kernels.bench.command import Options, bench

    values = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    bench(arguments.model, Options(**values))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from stompp_kernels.training.report import write_report

    for path in write_report(arguments.run, arguments.output, arguments.title):
        print(path)
    return 0


def _ablate(arguments: argparse.Namespace) -> int:
    from stompp_kernels.terminal import terminal
    from stompp_kernels.training.ablate import commands, read_study, run_study, shard_of
    from stompp_kernels.training.build import check_names

    recipes = read_study(arguments.study, [*_changes(arguments), *arguments.grid])
    for recipe in recipes:
        check_names(recipe)
    if arguments.shard is not None:
        recipes = shard_of(recipes, arguments.shard)
    if arguments.print_commands:
        if arguments.engine != "local":
            raise ValueError(f"engine has no effect with print_commands, got {arguments.engine!r}")
        for command in commands(recipes, arguments.output, arguments.device):
            print(command)
        return 0
    a, whole = arguments, arguments.shard is None
    failed = run_study(recipes, a.output, a.jobs, a.device, terminal(), whole, a.engine)
    if failed:
        print(f"stompp: {len(failed)} of {len(recipes)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    for flag, (key, text) in _RECIPE_FLAGS.items():
        parser.add_argument(flag, help=f"{text} (recipe: {key})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any value of the recipe"
    )


def _add_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default=default, help=f"device to run on (default: {default})"
    )


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust", action="store_true", help="call the functions that the run's own recipe names as module:function"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder that `stompp train` wrote")
    parser.add_argument(
        "--checkpoint", choices=("last", "best"), default="last", help="checkpoint to load (default: last)"
    )
    parser.add_argument("--data", help="folder of the data set (default: as the recipe says)")
    _add_trust(parser)


def _add_bench_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a registered model (with random weights), a packed file, or the folder of a run")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="samples per call (default: 1 64)")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="numbers of threads to measure, in turn (default: torch's)"
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=("fp32", "bf16", "int8", "packed", "fast"),
        help='forms to measure; "fast" is packed with float_layers="fast" (default: all that differ on this machine)',
    )
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave out torch.compile and AOTInductor, which take minutes",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="seconds to measure each combination of batch size and threads (default: 10)",
    )
    parser.add_argument("--shape", type=int, nargs="+", help="shape of one sample, for a packed file: 3 224 224, say")
    parser.add_argument(
        "--classes", dest="num_classes", type=int, help="number of outputs, for a registered model (default: 1000)"
    )
    parser.add_argument("--checkpoint", choices=("last", "best"), help="checkpoint to load, for a run (default: last)")
    parser.add_argument("--data", help="folder of the data set, for a run (default: as its recipe says)")
    _add_trust(parser)
    parser.add_argument("--output", type=Path, help="write what the tables show to this JSON file")
    _add_device(parser, "cpu")


class _StoreOnce(argparse._StoreAction):
    """Stores a value; a second one is an error, for the first would be lost without a word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = vars(namespace).setdefault("_given", set())
        if self.option_strings and self.dest in given:
            parser.error(f"argument {option_string}: is given twice")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _StoreOnce)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="stompp", description="Train binary networks with StoMPP, and run them on packed bits.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train, convert, check and time a binary network on handwritten digits")
    demo.add_argument("--regime", choices=REGIMES, default="ste", help="gradient of frozen entries (default: ste)")
    demo.add_argument(
        "--surrogate", choices=SURROGATES[1:], help="surrogate gradient, for the regimes that have one (default: clip)"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of weights, masks and batches (default: 0)")
    demo.add_argument("--epochs", type=int, default=60, help="number of epochs (default: 60)")
    demo.add_argument("--output", type=Path, help="keep the packed network in this file")
    demo.add_argument("--results", type=Path, help="write what the table shows to this JSON file")
    demo.set_defaults(run_command=_demo)

    info = commands.add_parser("info", help="say what runs here, what is missing and what adds it")
    info.set_defaults(run_command=_info)

    train = commands.add_parser("train", help="train by a recipe, in a folder that can be resumed")
    train.add_argument(
        "recipe", type=Path, nargs="?", help="a .toml, .yaml or .json file (default: the flags are the recipe)"
    )
    train.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME_seedN)")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the folder")
    train.add_argument("--tensorboard", action="store_true", help="also write a log for TensorBoard")
    _add_trust(train)
    _add_device(train, "auto")
    _add_recipe_flags(train)
    train.set_defaults(run_command=_train)

    ablate = commands.add_parser("ablate", help="run a recipe's variants over a grid and seeds, then report")
    ablate.add_argument("study", type=Path, help="a recipe with [grid], [variants] and seeds")
    ablate.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=[V1, V2]",
        type=lambda text: f"grid.{text}",
        help="run each of these values of the recipe",
    )
    ablate.add_argument(
        "--output", type=Path, required=True, help="folder that gets one folder per run; finished runs are kept"
    )
    ablate.add_argument("--shard", metavar="I/N", help="run only the I-th of N parts of the study, beside the others")
    ablate.add_argument(
        "--print-commands", action="store_true", help="print a command for each run that is not finished, and end"
    )
    ablate.add_argument("--jobs", type=int, default=1, help="number of runs at a time on a machine (default: 1)")
    ablate.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="run here, or on the machines of a Ray cluster (default: local)",
    )
    _add_device(ablate, "auto")
    _add_recipe_flags(ablate)
    ablate.set_defaults(run_command=_ablate)

    report = commands.add_parser("report", help="write one HTML page on runs, with figures as PNG")
    report.add_argument("run", type=Path, nargs="+", help="folders that `stompp train` or `stompp ablate` wrote")
    report.add_argument("--output", type=Path, default=Path("report"), help="folder to write to (default: report)")
    report.add_argument("--title", help="title of the page")
    report.set_defaults(run_command=_report)

    evaluate = commands.add_parser("eval", help="measure the accuracy of a trained network on the test data")
    _add_run(evaluate)
    evaluate.add_argument("--packed", action="store_true", help="pack the network first")
    _add_device(evaluate, "cpu")
    evaluate.set_defaults(run_command=_eval)

    convert = commands.add_parser("convert", help="pack a trained network into a file")
    _add_run(convert)
    convert.add_argument("--output", type=Path, required=True, help="file to write, by convention *.safetensors")
    convert.set_defaults(run_command=_convert)

    bench = commands.add_parser("bench", help="time a network, packed, against torch's fp32, bf16 and int8")
    _add_bench_flags(bench)
    bench.set_defaults(run_command=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see :mod:`stompp_kernels.exit_status` for how a command ends."""

    def command() -> int:
        arguments = _parser().parse_args(argv)
        return arguments.run_command(arguments)

    return run(command)


if __name__ == "__main__":
    raise SystemExit(main())

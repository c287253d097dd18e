"""A run from its recipe to its end: training, evaluation, records, checkpoints.

A step is a function of the recipe, the weights and its number, for data, masks and every random draw are: so a run that
was killed and resumed ends with the same bits as one that was not (as far as torch's own kernels repeat themselves).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stompp_kernels.bench.machine import machine
from stompp_kernels.default_dtype import default_dtype
from stompp_kernels.files import remove_unfinished, write_json
from stompp_kernels.nn import AveragedModel
from stompp_kernels.progression.units import kinds_of
from stompp_kernels.signals import Stopped, noting_signals
from stompp_kernels.terminal import terminal
from stompp_kernels.training.build import (
    build_model,
    build_optimizer,
    build_progression,
    example_of,
    load_data,
    lr_factor,
)
from stompp_kernels.training.checkpoint import BEST, LAST, save_checkpoint
from stompp_kernels.training.data import Inputs
from stompp_kernels.training.data.base import mixed_seed
from stompp_kernels.training.diagnostics import Diagnostics
from stompp_kernels.training.evaluate import evaluate, logits_of
from stompp_kernels.training.folder_lock import locked
from stompp_kernels.training.micro_batches import backward
from stompp_kernels.training.objective import Objective
from stompp_kernels.training.processes import Processes, start_processes
from stompp_kernels.training.progress_bar import ProgressBar
from stompp_kernels.training.recipe import SOFT, Recipe
from stompp_kernels.training.run_log import PACKED, RunLog
from stompp_kernels.training.run_state import RunState
from stompp_kernels.training.saved_run import RECIPE, RESULT, saved_state

if TYPE_CHECKING:
    from rich.console import Console


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    tensorboard: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains in a folder of its own: recipe.json, log.jsonl, the last and the best checkpoint, result.json at the end.

    The best checkpoint is that of the best accuracy among those of the furthest frontier: before it is binary
    throughout, a network's accuracy says little about the binary one's.

    Args:
        recipe: what to train, on what, and how; see :func:`stompp_kernels.training.recipe.read_recipe`.
        folder: made if need be.
        device: "cpu", "cuda" or "auto". Processes that torchrun started share the batches.
        resume: go on from the last checkpoint, or from the start where there is none.
        tensorboard: log to TensorBoard too.
        console: where progress is shown; None: the terminal, in the first process only.

    Returns:
        What result.json holds.

    Raises:
        ValueError: the folder has a run and ``resume`` is not given, its recipe is another one, its files are damaged,
            or another process trains in it.
        OSError: a file or the console cannot be written. The last checkpoint stays; where it is the console, one of
            that step is written first.
        Stopped: SIGINT, SIGTERM or SIGHUP came; the last checkpoint is of that step.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from rich.console import Console
        >>> from stompp_kernels.training.recipe import read_recipe
        >>> from stompp_kernels.training.trainer import train
        >>> changes = ["model.name=mlp", "model.options.widths=[16, 16]", "epochs=2", "batch_size=16"]
        >>> limits = ["data.name=digits", "data.options.train_limit=32", "data.options.test_limit=32"]
        >>> recipe = read_recipe(None, [*changes, *limits])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(recipe, Path(folder), device="cpu", console=Console(quiet=True))
        >>> result["frontier"], result["units"]
        (1, 1)
    """
    with ExitStack() as stack:
        stack.enter_context(default_dtype(torch.float32))  # of a recipe's weights and data, whatever the caller's is
        processes = stack.enter_context(start_processes(device))
        console = console or terminal(quiet=not processes.is_first)
        signals = stack.enter_context(noting_signals())
        if processes.is_first:
            stack.enter_context(locked(folder))
        run = Run(recipe, folder, processes, resume, console)
        try:
            return run.to_the_end(signals, tensorboard)
        except BaseException:
            run.progression._end_early()  # the exception says it
            raise
        finally:
            run.forward = None  # DDP holds the group of processes, which is to end with this block


class Run:
    """The state of a run, and its steps; see :func:`train`."""

    def __init__(self, recipe: Recipe, folder: Path, processes: Processes, resume: bool, console: Console) -> None:
        self.recipe, self.folder, self.processes, self.console = recipe, folder, processes, console
        saved = saved_state(recipe, folder, resume)
        processes.wait()  # before the first one writes there
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self.data = load_data(recipe, processes.device)
        self.model = build_model(recipe, self.data, start=saved is None)
        self.epoch_steps = self.data.steps_per_epoch(recipe.batch_size)
        self.total_steps = recipe.epochs * self.epoch_steps
        share = recipe.batch_size // processes.world_size
        if share % recipe.accumulate:
            raise ValueError(f"accumulate must divide the {share} samples of a process, got {recipe.accumulate}")
        if recipe.blockade is not None and processes.world_size > 1:
            raise ValueError(f"a recipe with a blockade must run in one process, got {processes.world_size}")
        self.progression: Any = build_progression(recipe, self.model, self.total_steps)
        self.average = AveragedModel(self.model, recipe.ema) if recipe.ema else None
        self.objective = Objective(recipe, self.model, self.data)
        self.optimizer = build_optimizer(recipe.optimizer, self.model)
        self.diagnostics = Diagnostics(self.model, self.progression.units)
        self.step, self.seconds, self.best, self.accuracy = 0, 0.0, (-1, -1.0), math.nan
        if saved is not None:
            self._load(saved)
        # Evaluation goes past DDP, which would synchronize at each batch, of which processes have different numbers.
        self.evaluated: Any = torch.compile(self.model) if recipe.compile else self.model
        self.forward = self._share_gradients(self.evaluated)
        self.log: RunLog | None = None
        # The steps since the last record, on the device, so that no step waits for it.
        self._losses: list[Tensor] = []
        self._accuracies: list[Tensor] = []
        self._since = time.perf_counter()

    def to_the_end(self, signals: list[int], tensorboard: bool = False) -> dict[str, Any]:
        """Trains until the last step."""
        if self.processes.is_first:
            self._open_records(tensorboard)
        self.model.train()
        self._committed = {unit.name for unit in self.progression.units if unit.committed}
        self._probe = example_of(self.data, self.processes.device)
        evaluate_every = max(1, round(self.recipe.evaluate_every * self.epoch_steps))
        checkpoint_every = max(1, round(self.recipe.checkpoint_every * self.epoch_steps))
        with ProgressBar(self.console, self.total_steps, self.step) as self._bar:
            self._bar.introduce(self._introduction())
            while self.step < self.total_steps:
                for inputs, labels in self._batches():
                    self._train_step(inputs, labels)
                    last = self.step == self.total_steps
                    if self.step % self.recipe.log_every == 0:
                        self._record()
                    if last or self.step % evaluate_every == 0:
                        self._evaluate()
                    if last or self.step % checkpoint_every == 0:
                        self._checkpoint()
                    self._stop_if_asked(signals)
        result = self._end()
        what = kinds_of(unit.layer for unit in self.progression.units)
        self._bar.say(
            f"{self.recipe.name}: test {result['accuracy']:.1f} %, {result['frontier']} of {result['units']} {what} "
            f"binary, after {timedelta(seconds=round(self.seconds))} of training"
        )
        if self._bar.error is not None:
            raise self._bar.error
        return result

    def _introduction(self) -> str:
        """Says on what, with what and where the run trains."""
        recipe, units, blockade = self.recipe, self.progression.units, self.recipe.blockade
        count = f"{len(units)} {kinds_of(unit.layer for unit in units)}"
        if not units:
            what = "the network stays in float"
        elif blockade is not None and blockade.rest == SOFT:
            what = f"{count} stay soft, with a blockade at unit {blockade.unit} (0: none)"
        elif recipe.progression.regime == "vanilla_ste":
            what = f"{count} are binary from the start"
        else:
            window = len(units[0].window)
            what = f"{count} become binary in windows of {window} steps, refresh {self.progression.refresh:g}"
        where = f"at step {self.step} of {self.total_steps}" if self.step else f"{self.total_steps} steps"
        return (
            f"{recipe.name}: {recipe.model.name} on {self.data.name}, {self.data.train_size:,} training and "
            f"{self.data.test_size:,} test samples, on {self.processes.device}; {where}; {what}; "
            f"files in {self.folder}"
        )

    def _open_records(self, tensorboard: bool) -> None:
        """Readies the run's folder; what a killed process left unfinished there is removed."""
        remove_unfinished(self.folder)
        if self.step < self.total_steps:
            (self.folder / PACKED).unlink(missing_ok=True)  # of the network that is trained on here
        self.log = RunLog(self.folder, self.step, tensorboard)
        write_json(self.folder / RECIPE, self.recipe.to_dict())
        self._log_start()

    def _batches(self) -> Any:
        epoch = self.step // self.epoch_steps
        p = self.processes
        start = self.step % self.epoch_steps
        return self.data.train_batches(epoch, self.recipe.batch_size, self.recipe.seed, start, p.rank, p.world_size)

    def _train_step(self, inputs: Inputs, labels: Tensor) -> None:
        torch.manual_seed(mixed_seed(self.recipe.seed, self.step, self.processes.rank))  # dropout: no state to keep
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr * lr_factor(self.recipe.optimizer, self.step, self.total_steps)
        if self.recipe.channels_last and isinstance(inputs, Tensor):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        batches = _parts(*self.objective.mixed(inputs, labels), self.recipe.accumulate)
        self.optimizer.zero_grad()
        loss, outputs = backward(lambda part: logits_of(self.forward, part), self.objective, batches, self._autocast)
        if loss is None:
            raise ValueError(f"no gradient reaches a parameter at step {self.step}: keep the last layer in float")
        if self.recipe.optimizer.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.max_gradient_norm)
        diagnosed = self.recipe.diagnostics_every > 0 and (self.step + 1) % self.recipe.diagnostics_every == 0
        norms = self.diagnostics.gradient_norms() if diagnosed else None
        ending = [unit for unit in self.progression.units if unit.window.stop == self.step + 1]
        reached = {unit.name: round(unit.frozen_fraction(), 4) for unit in ending}
        self.optimizer.step()
        self.progression.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        self._losses.append(loss)
        logits = torch.cat([output.detach() for output in outputs]) if len(outputs) > 1 else outputs[0].detach()
        self._accuracies.append((logits.argmax(1) == labels).float().mean())
        self._log_commitments(reached)
        if norms is not None:
            self._diagnose(norms)

    def _autocast(self) -> Any:
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.recipe.amp)

    def _log_commitments(self, reached: Mapping[str, float]) -> None:
        for index, unit in enumerate(self.progression.units):
            if unit.committed and unit.name not in self._committed:
                self._committed.add(unit.name)
                self._write("commit", unit=unit.name, index=index, frozen=reached.get(unit.name))
                if self.processes.world_size > 1 and self.recipe.progression.regime == "ste_free" and not self._unused:
                    self.forward = None  # whose hooks would stay with the parameters
                    self.forward = self._share_gradients(self.evaluated)

    def _diagnose(self, norms: list[float | None]) -> None:
        start = time.perf_counter()
        with self._autocast():
            values = self.diagnostics.record(self._probe)
        rounded = {
            key: [None if v is None else float(f"{v:.4g}") for v in of_units]
            for key, of_units in {"gradient_norm": norms, **values}.items()
        }
        self._write("diagnostics", **rounded)
        self._since += time.perf_counter() - start  # not a part of the step's time

    def _record(self) -> None:
        """Loss and accuracy of the steps since the last record, averaged over processes."""
        if not self._losses:
            return
        values = torch.stack([torch.stack(self._losses), 100 * torch.stack(self._accuracies)]).double()
        losses, accuracies = (self.processes.sum(values) / self.processes.world_size).tolist()
        seconds = time.perf_counter() - self._since
        self.seconds += seconds
        now, lr = self.progression.progress(), self.optimizer.param_groups[0]["lr"]
        self._write(
            "step",
            epoch=self.step / self.epoch_steps,
            lr=lr,
            frontier=now.frontier,
            p=now.p,
            frozen=round(now.frozen, 4),
            step_ms=1e3 * seconds / len(losses),
            losses=[round(value, 5) for value in losses],
            accuracies=[round(value, 3) for value in accuracies],
        )
        mean = sum(accuracies) / len(accuracies)
        self._bar.show(self.step, sum(losses) / len(losses), mean, now)
        self._losses, self._accuracies, self._since = [], [], time.perf_counter()

    def _evaluate(self) -> None:
        self._record()
        model, forward = (self.model, self.evaluated) if self.average is None else (self.average, self.average)
        with self._autocast():
            batch_size = max(1, self.recipe.batch_size // self.processes.world_size)
            accuracy, loss = evaluate(model, forward, self.data, batch_size, self.processes)
        self.accuracy = accuracy
        frontier = self.progression.frontier
        self._write("evaluation", epoch=self.step / self.epoch_steps, accuracy=accuracy, loss=loss, frontier=frontier)
        self._bar.show_test(self.step, accuracy)
        if (frontier, accuracy) > self.best:
            self.best = (frontier, accuracy)
            self._save(BEST)
        self._since = time.perf_counter()

    def _checkpoint(self) -> None:
        self._record()
        if self.log is not None:
            self.log.sync()
        self._save(LAST)
        self._since = time.perf_counter()

    def _stop_if_asked(self, signals: list[int]) -> None:
        """Where there are several processes they must agree, which they do at each record."""
        number = signals[0] if signals else 0
        if self._bar.error is not None and not number:
            number = signal.SIGPIPE
        if self.processes.world_size > 1:
            if self.step % self.recipe.log_every:
                return
            asked = torch.tensor([float(number > 0)], dtype=torch.float32, device=self.processes.device)
            number = number or (signal.SIGTERM if float(self.processes.sum(asked)) else 0)
        if number and self.step < self.total_steps:
            self._checkpoint()
            if number == signal.SIGPIPE and self._bar.error is not None:
                raise self._bar.error
            raise Stopped(number, f"at step {self.step}; --resume goes on from there")

    def _end(self) -> dict[str, Any]:
        result = {
            "accuracy": self.accuracy,
            "best_accuracy": self.best[1],
            "frontier": self.progression.frontier,
            "units": len(self.progression.units),
            "steps": self.step,
            "seconds": self.seconds,
        }
        if self.log is not None:
            values = {key: result[key] for key in ("accuracy", "best_accuracy", "seconds")}
            self.log.write("end", self.step, **values)
            self.log.close()
            write_json(self.folder / RESULT, {"recipe": self.recipe.to_dict(), "machine": machine(), "result": result})
        return result

    def _share_gradients(self, forward: Any) -> Any:
        if self.processes.world_size == 1:
            return forward
        # In the STE-free regime commitments take gradients away, which DDP must look for. Before the first one it would
        # find none, and later none either if it knew only what still learns, and would warn of both as a mistake.
        self._unused = self.recipe.progression.regime == "ste_free" and self.progression.frontier > 0
        frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        shared = nn.parallel.DistributedDataParallel(forward, find_unused_parameters=self._unused)
        for parameter in frozen:
            parameter.requires_grad_(False)
        return shared

    def _save(self, name: str) -> None:
        if not self.processes.is_first:
            return
        state = {
            "file": name,
            "step": self.step,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
            "best": list(self.best),
            "recipe": self.recipe.to_dict(),
            "model": self.model.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.module.state_dict()
        if name == LAST:
            state["optimizer"] = self.optimizer.state_dict()
            state["progression"] = self.progression.state_dict()
            state["diagnostics"] = self.diagnostics.state_dict()
        save_checkpoint(self.folder / name, state)

    def _load(self, saved: RunState) -> None:
        self.step = saved.step(self.total_steps)
        self.seconds, self.accuracy, self.best = saved.figures()
        self.model.load_state_dict(saved.model(self.model))
        if self.average is not None:
            self.average.module.load_state_dict(saved.model(self.model, "average"))
            self.average.n_averaged.fill_(self.step)
        self.optimizer.load_state_dict(saved.optimizer(self.optimizer))
        self.diagnostics.load_state_dict(saved.signs(self.diagnostics.state_dict()["signs"]))
        self.progression.load_state_dict(saved.content["progression"])

    def _write(self, event: str, **values: Any) -> None:
        if self.log is not None:
            self.log.write(event, self.step, **values)

    def _log_start(self) -> None:
        if self.step:
            return self._write("resume")
        units = self.progression.units
        self._write(
            "start",
            recipe=self.recipe.to_dict(),
            units=[unit.name for unit in units],
            windows=[[unit.window.start, unit.window.stop] for unit in units],
            refresh=self.progression.refresh,
            total_steps=self.total_steps,
            steps_per_epoch=self.epoch_steps,
            num_classes=self.data.num_classes,
            parameters=sum(p.numel() for p in self.model.parameters()),
            machine=machine(),
        )


def _parts(inputs: Inputs, target: Tensor, count: int) -> list[tuple[Inputs, Tensor]]:
    """A batch in parts of equal size."""
    if count == 1:
        return [(inputs, target)]
    if isinstance(inputs, Tensor):
        return list(zip(inputs.chunk(count), target.chunk(count), strict=True))
    columns = {key: value.chunk(count) for key, value in inputs.items()}
    return [({key: parts[i] for key, parts in columns.items()}, part) for i, part in enumerate(target.chunk(count))]

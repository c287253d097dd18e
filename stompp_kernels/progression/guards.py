"""What a progression notices of the training loop around it: misuse that would go on without a word.

torch calls a hook after the step of every optimizer of the process. By it a guard learns whether an optimizer holds its
model's parameters, and when it stepped.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from stompp_kernels.nn import BinaryLayer, BinaryMatmul, ProgressiveActivation, Stage
from stompp_kernels.nn.activation import OTHER_SIZES
from stompp_kernels.nn.masked import Masked
from stompp_kernels.progression.progress import Run

_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_hooked = False

# Entries of a parameter, and parameters, that tell whether an optimizer moved them and whether gradients are new.
_SAMPLE, _PARAMETERS = 64, 8
# Writes to a gradient in place that its version counts: clipping makes one, zeroing and the next backward two. The
# unscaling of a GradScaler is not counted.
_WRITES_WITHOUT_BACKWARD = 1
# Steps of one optimizer without a step of the progression: some train a part of the model several times in between.
_STEPS_WITHOUT_CALL = 10


class Guard:
    """Watches one progression's model. Each kind of misuse is warned about once.

    Args:
        model: the progression's.
        operations: its binary layers and products of activations by qualified name.
        run: the progression's; it learns of the optimizers' steps, and of a second progression on the model.
    """

    def __init__(self, model: nn.Module, operations: Mapping[str, BinaryLayer | BinaryMatmul], run: Run) -> None:
        self._model, self._operations, self._run = model, operations, run
        self._layers = {name: layer for name, layer in operations.items() if isinstance(layer, BinaryLayer)}
        self._warned: set[str] = set()
        # Those that hold a parameter of the model, each with its steps since the progression's last.
        self._optimizers: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._foreign = ""  # the class of one that stepped and holds none
        self._calls = self._calls_since_step = 0
        self._in_hook = False  # the last call came from a hook of the first optimizer to step
        self._gradients: list[tuple[weakref.ref[Tensor], int]] = []  # at the last call
        self._values: list[Tensor] = []  # of parameters, after the last call
        self._stages: list[tuple[str, Masked, Stage]] = []  # after the last call
        self._ahead: list[str] = []
        self._check_only_one()
        _guards.add(self)
        _install_hook()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=_stacklevel())

    def _check_only_one(self) -> None:
        if self._others():
            gc.collect()  # one that only a reference cycle keeps is none
            if others := self._others():
                self._run.join([guard._run for guard in others])
                self._warn(
                    "twice",
                    "the model has a StoMPP already, and this is another: each would advance its masks. Keep one for a "
                    "model, and delete the other before you make a new one",
                )

    def _others(self) -> list[Guard]:
        """Returns the guards of other progressions on the model."""
        mine = set(self._operations.values())
        return [g for g in list(_guards) if g is not self and not mine.isdisjoint(g._operations.values())]

    # --- calls of StoMPP ---

    def before_step(self, step: int, loaded: bool) -> None:
        """Runs at the beginning of StoMPP.step, after ``step`` steps; ``loaded``: its state was loaded since."""
        self._calls += 1
        # A hook of one optimizer runs before the one of all that notes its step.
        self._in_hook = not self._optimizers and _called_from("torch.optim.optimizer")
        self._check_optimizer()
        self._check_sizes()
        if self._calls_since_step and self._optimizers and self._gradients_are_unchanged():
            self._warn_of_order("runs again although no optimizer stepped since")
        if not loaded:
            self._check_stages()
        if step >= self._run.total_steps:
            self._warn(
                "total_steps",
                f"progression.step() runs for the {_ordinal(step + 1)} time, but total_steps={self._run.total_steps}: "
                "the windows were made for a shorter run. Give StoMPP the number of optimizer steps of the whole run",
            )
        self.restore(thorough=False, by="")
        self._calls_since_step += 1
        self._optimizers.update(dict.fromkeys(list(self._optimizers), 0))
        self._gradients = [(weakref.ref(gradient), gradient._version) for gradient in self._some_gradients()]

    def after_step(self, masked: Iterable[tuple[str, Masked]], committed: bool) -> None:
        """Runs at the end of StoMPP.step and of its construction; ``committed``: a unit was."""
        self._stages = [(name, m, m.stage) for name, m in masked]
        self._values = [] if self._optimizers else [_sample(p) for p in self._learning()]
        for layer in self._layers.values():
            if layer.committed_words is None:
                layer.hold_signs()
        if committed:
            self.restore(thorough=True, by="")
            self._check_latents_are_trained()

    def expect(self, ahead: Sequence[str]) -> None:
        """Names the units that were further at construction than the progression is."""
        self._ahead = list(ahead)

    def loaded(self) -> None:
        """Notes that the progression's state was loaded."""
        self._ahead, self._stages = [], []

    # --- what is checked ---

    def _check_stages(self) -> None:
        ahead, self._ahead = self._ahead, []
        changed = ahead or [name for name, masked, stage in self._stages if masked.stage is not stage]
        if changed and not self._others():  # these moved them, and were warned of
            what = "are further than this progression" if ahead else "changed between two steps of this progression"
            self._warn(
                "state",
                f"the masks of {_list(changed)} {what}, as if the model's state dict was loaded without the "
                "progression's: call progression.load_state_dict too, with what its state_dict() gave at that time",
            )

    def _check_sizes(self) -> None:
        """Warns, before the first mask is used, of inputs that masks do not fit."""
        for _, masked, _ in self._stages:
            if isinstance(masked, ProgressiveActivation) and masked.other_shape is not None:
                self._warn(
                    "sizes",
                    f"the model is trained with inputs of another size than it was prepared with, and will fail once "
                    f"masks are in use: {masked.shape_problem(masked.other_shape)}, got {list(masked.other_shape)}; "
                    f"{OTHER_SIZES}",
                )
                masked.other_shape = None

    def _check_optimizer(self) -> None:
        if self._optimizers or not self._foreign or not self._values:
            return
        now = [_sample(p) for p in self._learning()]
        if len(now) == len(self._values) and all(map(torch.equal, now, self._values)):
            self._warn(
                "optimizer",
                f"{self._foreign} steps, but holds none of the model's parameters, and these do not move: it was made "
                "before sk.prepare, which returns a copy, or of another copy. Make the optimizer from the parameters "
                "of the model that sk.prepare returned",
            )

    def _check_latents_are_trained(self) -> None:
        if not self._optimizers:
            return
        held = {id(p) for optimizer in self._optimizers for p in _parameters(optimizer)}
        left = [n for n, layer in self._layers.items() if layer.weight.requires_grad and id(layer.weight) not in held]
        left = [name for name in left if not self._layers[name].committed]
        if left:
            self._warn(
                "left out",
                f"no optimizer that stepped holds the latent weights of {_list(left)}: they will be committed as they "
                "are. Give them to the optimizer, or take requires_grad from them",
            )

    def _warn_of_order(self, how: str) -> None:
        self._warn(
            "order",
            f"progression.step() {how}: masks then move between a gradient and its step, and commitments drop "
            "gradients that are still wanted. Call progression.step() once after each optimizer.step()",
        )

    def restore(self, thorough: bool, by: str) -> None:
        """Gives committed weights their signs back where something changed them; names it."""
        changed = {name: layer.restore_signs_(thorough) for name, layer in self._layers.items()}
        changed = {name: count for name, count in changed.items() if count}
        if changed:
            self._warn(
                "signs",
                f"{by or 'something'} changed {sum(changed.values())} signs of committed weights, in {_list(changed)}. "
                "A commitment of the STE-free regime is for good: the layers compute from the signs that they were "
                "committed with, and their weights got these back. Optimizers that write parameters without a "
                "gradient, as LBFGS does, should get only those that still learn: model.named_parameters() without "
                "progression.without_gradient()",
            )

    # --- optimizers ---

    def note(self, optimizer: Optimizer) -> None:
        """Notes a step of any optimizer, after which it is called."""
        if optimizer not in self._optimizers:
            mine = {id(p) for p in self._model.parameters()}
            if mine.isdisjoint(map(id, _parameters(optimizer))):
                self._foreign = type(optimizer).__name__
                return
            if self._calls and not self._optimizers and not self._in_hook:
                self._check_first_order()
            self._optimizers[optimizer] = 0
        self._calls_since_step, self._run.trained = 0, True
        self._optimizers[optimizer] += 1
        self._check_calls(optimizer)
        self.restore(thorough=False, by=f"{type(optimizer).__name__}.step()")

    def _check_calls(self, optimizer: Optimizer) -> None:
        steps = self._optimizers[optimizer]
        if steps < _STEPS_WITHOUT_CALL or all(o.committed for o in self._operations.values()):
            return
        how = "again " if self._calls else ""
        self._warn(
            "no call",
            f"progression.step() has not been called {how}after {steps} optimizer steps, so that no mask moves and "
            f"nothing is committed: call it once after each optimizer.step(), {self._run.total_steps} times in all",
        )

    def _check_first_order(self) -> None:
        # Where there was no gradient at the last call nothing was trained before it, unless a GradScaler skipped steps.
        early = not self._gradients and self._calls == 1 and not _called_from("torch.amp.grad_scaler")
        if early or self._gradients_are_unchanged():
            self._warn_of_order("ran before optimizer.step()")

    def _gradients_are_unchanged(self) -> bool:
        """Returns whether no backward followed the last call."""
        now = self._some_gradients()
        if not now or len(now) != len(self._gradients):
            return False
        versions = [version for _, version in self._gradients]
        same = all(ref() is gradient for gradient, (ref, _) in zip(now, self._gradients, strict=True))
        return same and all(g._version - v <= _WRITES_WITHOUT_BACKWARD for g, v in zip(now, versions, strict=True))

    def _learning(self) -> list[Tensor]:
        plain = (p for p in self._model.parameters() if p.requires_grad and type(p) is nn.Parameter and not p.is_meta)
        return [p for p, _ in zip(plain, range(_PARAMETERS), strict=False)]

    def _some_gradients(self) -> list[Tensor]:
        gradients = (p.grad for p in self._learning())
        return [gradient for gradient in gradients if gradient is not None]


def _sample(parameter: Tensor) -> Tensor:
    return parameter.detach().reshape(-1)[:_SAMPLE].clone()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else endings.get(number % 10, 'th')}"


def _called_from(module: str) -> bool:
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False


def _stacklevel() -> int:
    """Points the warning at the first caller outside this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("stompp_kernels", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _after_optimizer_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():  # what is traced must not hold the guards
        return
    for guard in list(_guards):
        guard.note(optimizer)


def _install_hook() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        register_optimizer_step_post_hook(_after_optimizer_step)

"""The controller: advances the masks of a model's units, one window after the other.

After Smith & Islam, "Layerwise Progressive Freezing: A Training Scaffold for Depth-Scalable Binary Networks"
(arXiv 2606.27759).
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from stompp_kernels.nn import BinaryLayer, ProgressiveActivation, Stage
from stompp_kernels.ops.checks import check_choice
from stompp_kernels.progression.gradient_paths import set_frozen, without_gradient
from stompp_kernels.progression.guards import Guard
from stompp_kernels.progression.progress import Progress, Run
from stompp_kernels.progression.schedule import (
    AUTO,
    frozen_probability,
    order_units,
    refresh_of,
    short_windows,
    windows,
)
from stompp_kernels.progression.settings import BINARIZE, check_settings, difference, former_defaults
from stompp_kernels.progression.units import Unit, check_binarize, kinds_of, linked_operations, make_units

# A run may be resumed with another freeze_prefix: no value changes by it.
_NOT_SAVED = ("self", "model", "freeze_prefix")


class StoMPP:
    """Commits a model's binary layers, and its products of activations, step by step.

    Call :meth:`step` after each ``optimizer.step()``, never before it, as with a learning-rate scheduler::

        model, report = sk.prepare(model, example_inputs)
        progression = sk.StoMPP(model, total_steps=len(loader) * epochs)
        for x, y in batches:
            loss(model(x), y).backward()
            optimizer.step()
            progression.step()
            optimizer.zero_grad()

    Under torch.compile a moving p compiles nothing again; after a commitment a graph is compiled once. So that torch
    does not fall back to eager after a few of them, the first commitment raises
    ``torch._dynamo.config.recompile_limit`` by two for each unit (training and evaluation), and later ones see to it
    that it is still as high.

    Distributed training needs no communication for the masks: every process draws the same. In the STE-free regime wrap
    the model with ``DistributedDataParallel(model, find_unused_parameters=True)``, for commitments take gradients away;
    without it, or with ``static_graph=True``, DDP raises at the first forward after one. For FSDP2 call ``sk.prepare``
    before ``fully_shard``. In the STE-free regime checkpoints of activations must be ``use_reentrant=False``: the
    reentrant ones give no gradient to a block whose input has none. ``stompp_kernels.nn.AveragedModel`` averages
    weights and copies masks. A step that a GradScaler skips still counts.

    A RuntimeWarning tells, once each, of a second StoMPP on the model, an optimizer without the model's parameters or
    without latent weights that are about to be committed, :meth:`step` before ``optimizer.step()`` or more often than
    ``total_steps``, a state dict of the model that was loaded without the progression's, and windows that are shorter
    than 5 ``refresh``.

    Args:
        model: prepared by ``sk.prepare``, or built by hand and passed through ``sk.link``.
        total_steps: optimizer steps of the run.
        shape: of p(t): "cubic", "linear", "quadratic", "cosine", "flipped_quadratic".
        order: "forward" (input to output), "reverse", "global" (all units share one window), or all units' names.
        refresh: r; each mask entry is drawn again with probability 1/r a step, so that masks follow p some r steps
            late. At least 1. "auto": a twentieth of a window, from 1 to 100; :attr:`refresh` is the number.
        regime: "ste_free": frozen entries have no gradient. What a commitment cuts off (the layer's weights, all
            that lies behind its activation) keeps a gradient of None, so that no optimizer moves it: at each commitment
            :meth:`step` sets the gradients of the whole model to None, hence its place after ``optimizer.step()``.
            A committed layer computes from the signs that it was committed with; where something changes those of its
            weights all the same (LBFGS, an average that is copied back) they are restored, with a warning.
            "ste": frozen entries follow ``surrogate``. "vanilla_ste": the baseline, everything committed from step 0.
        surrogate: "clip", "identity" or "approx_sign", for the regimes with one.
        surrogate_weights, surrogate_activations: another surrogate for weights or activations alone; None:
            ``surrogate``. BinaryConnect's is "identity" for weights, which ``clip_latent`` bounds.
        binarize: "both" weights and activations (BNN), or "weights" (BWN), as given to ``sk.prepare``.
        overlap: fraction of a window shared with the next one, in [0, 1).
        warmup, cooldown: fractions of the run before the first window and after the last one. In the cool-down the
            network is fully committed and only what still has a gradient learns.
        seed: of the masks' random stream, 64 bits.
        clip_latent: clip latent weights to [-1, 1] after each step (BinaryConnect).
        freeze_prefix: in the STE-free regime, take ``requires_grad`` from the parameters of :meth:`without_gradient` at
            each commitment, so that what holds no others runs without autograd. BatchNorm stays in training mode and
            goes on with its statistics. No value changes by it (as long as torch picks the same forward kernels for
            tensors that require no grad), so a run may be resumed with another choice. Give False where the loss takes
            more than the model's output, say a layer's features or weights, or where inputs choose the layers that run.
        activation_masks: "shared" by the batch, of one sample's shape and softly refreshed; or "per_element": every
            entry of every batch is drawn by itself from Bernoulli(p), without ``refresh``, by its place in the batch of
            this process: micro-batches of one step, and processes, draw alike.

    Raises:
        TypeError: total_steps is not an int.
        ValueError: an argument is out of range, a binary layer is not linked, or ``binarize`` is not what the model was
            prepared for.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> progression = sk.StoMPP(model, total_steps=12, regime="ste")
        >>> for _ in range(12):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 1, 8, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     progression.step()
        >>> progression.progress()
        Progress(step=12, frontier=2, units=2, active=(), p=1.0, frozen=1.0)
        >>> progression
        StoMPP(regime='ste', order='forward', step 12 of 12, 2 of 2 layers committed)
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        shape: str = "cubic",
        order: str | Sequence[str] = "forward",
        refresh: float | str = AUTO,
        regime: str = "ste_free",
        surrogate: str = "clip",
        binarize: str = "both",
        overlap: float = 0.0,
        warmup: float = 0.0,
        cooldown: float = 0.1,
        seed: int = 0,
        clip_latent: bool = True,
        freeze_prefix: bool = True,
        activation_masks: str = "shared",
        surrogate_weights: str | None = None,
        surrogate_activations: str | None = None,
    ) -> None:
        arguments = dict(locals())  # all of them, and nothing else yet
        if not isinstance(total_steps, int):
            raise TypeError(f"total_steps must be an int, got {total_steps!r}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        check_settings(arguments)
        check_choice("binarize", binarize, BINARIZE)
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be in [0, 2^63), got {seed}")

        self.total_steps, self.shape, self.regime = total_steps, shape, regime
        self.seed, self.clip_latent = seed, clip_latent
        self.freeze_prefix = freeze_prefix and regime == "ste_free"
        self._model = model
        operations = linked_operations(model)
        check_binarize(operations, binarize)
        names = [name for name, _ in operations]
        places = order_units(names, order)
        if regime == "vanilla_ste":
            steps = [range(0)] * len(operations)  # all are committed from step 0
        else:
            steps = windows(places, total_steps, warmup, cooldown, overlap)
        self.units = make_units(operations, steps)
        self.refresh = refresh_of(refresh, min(map(len, steps)))
        self._config = {
            **{name: value for name, value in arguments.items() if name not in _NOT_SAVED},
            "order": order if isinstance(order, str) else list(order),
            "refresh": self.refresh,
            "units": names,
        }
        self._surrogates_given = surrogate_weights, surrogate_activations
        self._set_surrogates(surrogate)
        defaults = {"refresh": AUTO, "surrogate": "clip"}
        self._by_default = [name for name, default in defaults.items() if arguments[name] == default]
        self._step, self._loaded = 0, False
        self._frozen_at: list[bool] | None = None  # what was committed when the prefix was last frozen
        self._recompile_limit: int | None = None
        self._run = Run(total_steps)
        weakref.finalize(self, self._run.warn)
        for activation in self._activations():
            activation.draw_per_element(activation_masks == "per_element")
        problem = "" if regime == "vanilla_ste" else short_windows(shape, min(map(len, steps)), self.refresh)
        if problem:
            warnings.warn(problem, RuntimeWarning, stacklevel=2)
        self._guard = Guard(model, dict(operations), self._run)
        if regime != "vanilla_ste":
            self._guard.expect([u.name for u in self.units if any(m.stage > Stage.SOFT for m, _ in u.masked())])
        if self.frontier:
            self._drop_gradients()
        self._advance()

    def _set_surrogates(self, surrogate: str) -> None:
        """Gives each mask its surrogate, and notes them among the settings that a state holds."""
        chosen = [surrogate, *(given or surrogate for given in self._surrogates_given)]
        if self.regime == "ste_free":
            chosen = ["none"] * 3
        self.surrogate, weights, activations = chosen
        self._config.update(surrogate=self.surrogate, surrogate_weights=weights, surrogate_activations=activations)
        for layer in self._layers():
            layer.set_surrogate(weights)
        for activation in self._activations():
            activation.set_surrogate(activations)

    def _layers(self) -> list[BinaryLayer]:
        return [unit.weights for unit in self.units if unit.weights is not None]

    def _activations(self) -> list[ProgressiveActivation]:
        return [activation for unit in self.units for activation in unit.activations]

    def step(self) -> None:
        """Advances by one optimizer step: refreshes the masks of units in their windows, commits those past theirs.

        Raises:
            RuntimeError: :meth:`load_state_dict` was called, but the model's state dict was not loaded.
        """
        loaded = self._loaded
        if loaded:
            self._check_model_is_loaded()
        self._guard.before_step(self._step, loaded)
        self._step += 1
        if self.clip_latent:
            for layer in self._layers():
                if layer.stage is not Stage.BINARY or self.regime != "ste_free":
                    layer.clip_latent_()
        self._advance()

    def _advance(self) -> None:
        for unit in self.units:
            if self._is_over(unit):
                if any(masked.stage is not Stage.BINARY for masked, _ in unit.masked()):
                    self._commit(unit)
            elif self._step > unit.window.start:
                for masked, tensor_id in unit.masked():
                    if masked.stage is not Stage.BINARY:  # committed under another progression: for good
                        masked.refresh(self._p(unit), self.refresh, self.seed, tensor_id, self._step)
        committed = [masked.committed for unit in self.units for masked, _ in unit.masked()]
        self._guard.after_step(
            [(unit.name, masked) for unit in self.units for masked, _ in unit.masked()], committed != self._frozen_at
        )
        if committed != self._frozen_at:
            self._freeze_prefix()
            self._frozen_at = committed
        self._run.step = self._step
        self._run.uncommitted = len(self.units) - self.frontier

    def _commit(self, unit: Unit) -> None:
        for masked, _ in unit.masked():
            masked.commit()
        self._drop_gradients()
        self._raise_recompile_limit()

    def _raise_recompile_limit(self) -> None:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is not None:  # this process compiles
            limit = dynamo.config.recompile_limit
            if self._recompile_limit is None:
                self._recompile_limit = limit + 2 * len(self.units)
            dynamo.config.recompile_limit = max(limit, self._recompile_limit)

    def without_gradient(self) -> list[str]:
        """Names the parameters that can get no gradient any more, in the order of ``model.named_parameters()``.

        These are the committed weights of the STE-free regime and all whose paths to the model's output are cut by
        commitments, whether or not ``freeze_prefix`` is on; none in the other regimes. The paths are those that
        ``sk.link`` found; a parameter that it did not see counts as able.
        """
        return list(without_gradient(self._model))

    def _freeze_prefix(self) -> None:
        set_frozen(self._model, without_gradient(self._model) if self.freeze_prefix else {})

    def _drop_gradients(self) -> None:
        if self.regime == "ste_free":
            # A zero gradient would still let momentum and weight decay move what backward no longer reaches, and flip
            # the signs of committed weights. What it still reaches gets a gradient again.
            for parameter in self._model.parameters():
                parameter.grad = None

    def _check_model_is_loaded(self) -> None:
        for unit in self.units:
            expected = self._expected_stage(unit)
            if any(masked.stage < expected for masked, _ in unit.masked()):
                raise RuntimeError(
                    f"unit {unit.name!r} must be {expected.name} at step {self._step}, got {unit.layer.stage.name}: "
                    "load the model's state dict too"
                )
        self._loaded = False

    def _expected_stage(self, unit: Unit) -> Stage:
        started = Stage.PARTIAL if self._step > unit.window.start else Stage.SOFT
        return Stage.BINARY if self._is_over(unit) else started

    def _is_over(self, unit: Unit) -> bool:
        return self.regime == "vanilla_ste" or self._step >= unit.window.stop

    def _p(self, unit: Unit) -> float:
        return frozen_probability(self.shape, (self._step - unit.window.start) / len(unit.window))

    def _end_early(self) -> None:
        """Marks the run as ended on purpose: no warning says that units are not committed."""
        self._run.ended_early = True

    @property
    def frontier(self) -> int:
        """The number of units committed so far."""
        return sum(unit.committed for unit in self.units)

    @property
    def fully_committed(self) -> bool:
        """Whether every unit is binary, so that the model converts as a whole."""
        return self.frontier == len(self.units)

    def warn_if_uncommitted(self) -> None:
        """Warns if units are not committed, as the end of the progression's life does: call it when training ends."""
        self._run.warn()

    def progress(self) -> Progress:
        """Returns a snapshot for logs and progress bars."""
        active = [unit for unit in self.units if unit.window.start < self._step < unit.window.stop]
        if self.regime == "vanilla_ste":
            active = []
        names = tuple(unit.name for unit in active)
        p, frozen = (self._p(active[0]), active[0].frozen_fraction()) if active else (float(self.fully_committed),) * 2
        return Progress(self._step, self.frontier, len(self.units), names, p, frozen)

    def __repr__(self) -> str:
        steps = f"step {self._step} of {self.total_steps}"
        committed = f"{self.frontier} of {len(self.units)} {kinds_of(unit.layer for unit in self.units)} committed"
        return f"StoMPP(regime={self.regime!r}, order={self._config['order']!r}, {steps}, {committed})"

    def frozen_fraction(self) -> float:
        """Returns the share of frozen entries in all masks, weights and activations, in [0, 1]."""
        masks = [masked for unit in self.units for masked, _ in unit.masked()]
        return sum(masked.frozen() for masked in masks) / sum(masked.mask_numel for masked in masks)

    def state_dict(self) -> dict[str, Any]:
        """Returns step and configuration. The masks are in the model's state dict: save both."""
        return {"step": self._step, "config": dict(self._config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken, to the same bits, once the model's state dict is loaded too.

        In the STE-free regime the gradients of the whole model become None. Its prefix is frozen at once if the model's
        state dict was loaded before, else at the next :meth:`step`.

        A state of a version whose defaults were ``refresh=100`` and ``surrogate="identity"`` goes on with those where
        this progression was given neither, with a RuntimeWarning.

        Raises:
            ValueError: the state belongs to a progression with other settings or another model.
        """
        former = former_defaults(state["config"], self._by_default)
        problem = difference(state["config"], self._config, former)
        if problem:
            raise ValueError(problem)
        if not state["step"] >= 0:
            raise ValueError(f"step must be at least 0, got {state['step']}")
        if former:
            self.refresh = self._config["refresh"] = former.get("refresh", self.refresh)
            if "surrogate" in former:
                self._set_surrogates(former["surrogate"])
            settings = ", ".join(f"{key}={value!r}" for key, value in former.items())
            warnings.warn(
                f"the state was saved by a version with the defaults {settings}: the run goes on with these. Give them "
                "as arguments to say that you mean it",
                RuntimeWarning,
                stacklevel=2,
            )
        self._step, self._loaded = state["step"], True
        self._guard.loaded()
        self._drop_gradients()
        self._frozen_at = None
        if all(masked.stage is self._expected_stage(unit) for unit in self.units for masked, _ in unit.masked()):
            self._freeze_prefix()
        else:
            set_frozen(self._model, {})  # the stages are not those of the state dict that is still to come
        self._run.step = self._step
        self._run.uncommitted = len(self.units) - self.frontier

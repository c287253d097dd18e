"""StoMPP in Lightning."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from stompp_kernels.training.callbacks.owner import ProgressionOwner

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
except ImportError as error:
    raise ImportError('StoMPPCallback needs lightning: pip install "stompp_kernels[lightning]"') from error


class StoMPPCallback(ProgressionOwner, Callback):
    """Commits a LightningModule's layers step by step.

    The module, or the part of it that ``module`` names, went through ``sk.prepare`` before its optimizers are made.
    When training starts, the callback builds a :class:`stompp_kernels.StoMPP` on it, :attr:`progression`, and advances
    it after each batch that stepped an optimizer. Lightning's checkpoints hold all of it, masks in the state dict, the
    progression's step and settings among the callbacks' states: ``trainer.fit(..., ckpt_path=...)`` with the same
    options goes on to the same bits, as far as the data loader does.

    Every ``log_every_n_steps`` it logs "stompp/frontier" (units committed), "stompp/p", "stompp/frozen" (what the masks
    have reached of p) and "stompp/frozen_fraction" (of all masks). Under DDP the STE-free
    regime needs ``strategy="ddp_find_unused_parameters_true"``. Training ends early, with a warning, once no gradient
    reaches a parameter any more: in the STE-free regime, where even the last layer is binarized.

    Args:
        total_steps: of the progression; if None the optimizer steps that the trainer plans: without the epoch that
            StochasticWeightAveraging adds for BatchNorm, in which no optimizer steps, and by the factors of a
            GradientAccumulationScheduler. Give it where training stops earlier (``max_time``, EarlyStopping): at the
            end a warning tells of units that are not committed.
        module: qualified name of the prepared submodule; "" is the LightningModule as a whole.
        options: of :class:`stompp_kernels.StoMPP`, such as ``regime``, ``shape``, ``refresh`` and ``seed``.

    Raises:
        TypeError: when training starts: ``total_steps`` is None and the trainer's steps have no bound.
        ValueError: when training starts: there is no such module or it is not prepared, an option is out of range, or
            the checkpoint that training goes on from holds no progression's state or one with other settings.

    Example:
        >>> from stompp_kernels.training.callbacks.lightning import StoMPPCallback
        >>> callback = StoMPPCallback(module="model", regime="ste")
        >>> callback.progression is None  # until trainer.fit() begins
        True
    """

    def __init__(self, total_steps: int | None = None, module: str = "", **options: Any) -> None:
        super().__init__(total_steps, options)
        self.module = module
        self._global_step = 0
        self._max_epochs: int | None = None

    @property
    def state_key(self) -> str:
        """The callback's place in a checkpoint: one per module."""
        return self._generate_state_key(module=self.module)

    def _model(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            raise ValueError(
                f"module must name a submodule of {type(pl_module).__name__}, got {self.module!r}"
            ) from error

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the epochs that the trainer was given, before callbacks add some."""
        self._max_epochs = trainer.max_epochs  # before callbacks add epochs of their own, when fitting starts

    def _planned_steps(self, trainer: Trainer) -> Any:
        """Returns the optimizer steps of the whole run; infinite, a float, where it has no bound."""
        estimated, added = trainer.estimated_stepping_batches, trainer.max_epochs
        batches, epochs = trainer.num_training_batches, self._max_epochs
        if epochs is None or epochs < 0 or math.isinf(batches):
            return estimated
        schedules = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]
        if not schedules and epochs == added:
            return estimated
        factors = [
            schedules[0].get_accumulate_grad_batches(epoch) if schedules else trainer.accumulate_grad_batches
            for epoch in range(epochs)
        ]
        steps = sum(math.ceil(batches / factor) for factor in factors)
        return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds the progression, and brings it to the step that training goes on from."""
        self._global_step = trainer.global_step
        total_steps = self._planned_steps(trainer) if self.total_steps is None else self.total_steps
        self.begin(self._model(pl_module), total_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Steps the progression if an optimizer stepped, and ends training where nothing can learn on."""
        if trainer.global_step == self._global_step:  # gradients are being accumulated
            return
        self._global_step = trainer.global_step
        assert self.progression is not None
        if self.total_steps is None and self.progression.progress().step >= self.progression.total_steps:
            return  # the epoch that StochasticWeightAveraging adds ends with a step without a gradient
        if not self.advance(self._model(pl_module), pl_module):
            trainer.should_stop = True
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self.figures())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns where units are not committed."""
        self.finish()

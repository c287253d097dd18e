"""StoMPP in Lightning."""

from __future__ import annotations

from typing import Any

from torch import nn

from stompp_kernels.training.callbacks.owner import ProgressionOwner

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError('StoMPPCallback needs lightning: pip install "stompp_kernels[lightning]"') from error


class StoMPPCallback(ProgressionOwner, Callback):
    """Commits a LightningModule's layers step by step.

    The module, or the part of it that ``module`` names, went through ``sk.prepare`` before its optimizers are made.
    When training starts, the callback builds a :class:`stompp_kernels.StoMPP` on it, :attr:`progression`, and advances
    it after each batch that stepped an optimizer. Lightning's checkpoints hold all of it, masks in the state dict, the
    progression's step and settings among the callbacks' states: ``trainer.fit(..., ckpt_path=...)`` with the same
    options goes on to the same bits, as far as the data loader does.

    Every ``log_every_n_steps`` it logs "stompp/frontier" (units committed), "stompp/p" and "stompp/frozen_fraction".
    Under DDP the STE-free regime needs ``strategy="ddp_find_unused_parameters_true"``. Training ends early, with a
    warning, once no gradient reaches a parameter any more: in the STE-free regime, where even the last layer is
    binarized.

    Args:
        total_steps: of the progression; ``trainer.estimated_stepping_batches`` if None.
        module: qualified name of the prepared submodule; "" is the LightningModule as a whole.
        options: of :class:`stompp_kernels.StoMPP`, such as ``regime``, ``shape``, ``refresh`` and ``seed``.

    Raises:
        TypeError: when training starts: ``total_steps`` is None and the trainer's steps have no bound.
        ValueError: when training starts: there is no such module or it is not prepared, an option is out of range, or
            the checkpoint that training goes on from holds no progression's state or one with other settings.
    """

    def __init__(self, total_steps: int | None = None, module: str = "", **options: Any) -> None:
        super().__init__(total_steps, options)
        self.module = module
        self._global_step = 0

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step
        total_steps = trainer.estimated_stepping_batches if self.total_steps is None else self.total_steps
        self.begin(self._model(pl_module), total_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self._global_step:  # gradients are being accumulated
            return
        self._global_step = trainer.global_step
        if not self.advance(self._model(pl_module), pl_module):
            trainer.should_stop = True
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self.figures())

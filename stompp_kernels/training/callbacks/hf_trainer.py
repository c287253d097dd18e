"""StoMPP in transformers.Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from stompp_kernels.training.callbacks.owner import ProgressionOwner

try:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState, TrainerCallback
except ImportError as error:
    raise ImportError(
        'StoMPPTrainerCallback needs transformers and accelerate: pip install "stompp_kernels[transformers]"'
    ) from error


class StoMPPTrainerCallback(ProgressionOwner, TrainerCallback, ExportableState):
    """Commits the model of a ``transformers.Trainer`` step by step.

    Give the Trainer a model that went through ``sk.prepare``. When training begins, the callback builds a
    :class:`stompp_kernels.StoMPP` on it, :attr:`progression`, and advances it after each optimizer step, however many
    batches a step accumulates. Checkpoints hold all of it, masks in the model's weights, the progression's step and
    settings in ``trainer_state.json``: ``trainer.train(resume_from_checkpoint=...)`` with the same options goes on to
    the same bits.

    The Trainer's logs get "stompp/frontier" (units committed), "stompp/p", "stompp/frozen" (what the masks have reached
    of p) and "stompp/frozen_fraction" (of all masks). Callbacks see logs in their order, and the Trainer puts the
    reporters of ``report_to`` first: they get these figures too if ``report_to="none"`` and they are given as callbacks
    after this one.

    Training ends early, with a warning, once no gradient reaches a parameter any more: in the STE-free regime, where
    even the last layer is binarized. ``load_best_model_at_end`` may bring back a model that is not fully committed yet;
    a warning says so. Under DDP the STE-free regime needs ``ddp_find_unused_parameters=True``, the Trainer's default
    unless activations are checkpointed.

    Args:
        total_steps: of the progression; the Trainer's ``max_steps``, given or computed, if None.
        options: of :class:`stompp_kernels.StoMPP`, such as ``regime``, ``shape``, ``refresh`` and ``seed``.

    Raises:
        ValueError: when training begins: the model is not prepared, an option is out of range, or the checkpoint that
            training goes on from holds no progression's state or one with other settings.

    Example:
        >>> from stompp_kernels.training.callbacks.hf_trainer import StoMPPTrainerCallback
        >>> callback = StoMPPTrainerCallback(regime="ste")
        >>> callback.progression is None  # until trainer.train() begins
        True
    """

    def __init__(self, total_steps: int | None = None, **options: Any) -> None:
        super().__init__(total_steps, options)

    def state(self) -> dict[str, Any]:
        """Returns what the Trainer writes into ``trainer_state.json``."""
        return {"args": {"total_steps": self.total_steps, **self.options}, "attributes": {"saved": self.state_dict()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Builds the progression, and brings it to the step that training goes on from."""
        # The Trainer has loaded the checkpoint's weights and its trainer_state.json, but gives callbacks their state
        # back only under restore_callback_states_from_checkpoint.
        if state.global_step:
            saved = state.stateful_callbacks.get(type(self).__name__, {"attributes": {"saved": {}}})
            self.load_state_dict(saved["attributes"]["saved"])
        total_steps = state.max_steps if self.total_steps is None else self.total_steps
        self.begin(kwargs["model"], total_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Steps the progression, and ends training where nothing can learn on."""
        model: nn.Module = kwargs["model"]
        if not self.advance(model, model):
            control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the progression's figures to the logs."""
        if self.progression is not None:
            figures = self.figures()
            kwargs["logs"].update(figures)
            state.log_history[-1].update(figures)  # a copy, made before callbacks see the logs

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warns where the network that training leaves is not fully binary."""
        assert self.progression is not None
        self.finish()
        if args.load_best_model_at_end and not self.progression.fully_committed:
            frontier, units = self.progression.frontier, len(self.progression.units)
            warnings.warn(
                f"load_best_model_at_end brought back {state.best_model_checkpoint!r}, in which {frontier} of {units} "
                "units are committed: the network is not fully binary",
                RuntimeWarning,
                stacklevel=2,
            )

"""The callbacks of transformers.Trainer and Lightning, in the real libraries."""

import csv
import functools
import importlib
import sys

import lightning.pytorch as pl
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import (
    Checkpoint,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from models_for_tests import MLP, assert_same_state, masked_modules, seeded, snapshot
from torch import nn
from torch.utils.data import DataLoader

import stompp_kernels as sk
from stompp_kernels.training.callbacks.hf_trainer import StoMPPTrainerCallback
from stompp_kernels.training.callbacks.lightning import StoMPPCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

REGIMES = {"ste_free": {"regime": "ste_free"}, "ste": {"regime": "ste", "surrogate": "clip"}}
OPTIONS = {"refresh": 2, "seed": 11}
# 12 batches, two of which make a step: 6 steps an epoch. The units' windows end at steps 11 and 22.
TOTAL, EPOCHS, BATCH, ACCUMULATED = 24, 4, 8, 2
BATCHES = 12


class Labelled(nn.Module):
    """A prepared net as the Trainer wants it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class LitClassifier(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"])

    def configure_optimizers(self):
        return sgd(self)


class ToTheEnd(nn.Sequential):
    """Its last layer is binarized too, and has no bias: once all is committed no gradient reaches a parameter."""

    def __init__(self):
        super().__init__(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def prepared(seed=0, net=MLP, **options):
    seeded(seed)
    return sk.prepare(net(), torch.randn(1, 7), **options)[0]


def samples(count=BATCHES * BATCH):
    """Four classes by the quadrant of the first two features."""
    x = torch.randn(count, 7, generator=torch.Generator().manual_seed(5))
    labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return [{"x": row, "labels": label} for row, label in zip(x, labels, strict=True)]


def hf_trainer(directory, callbacks, model=None, seed=0, eval_dataset=None, **arguments):
    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATED,
        "save_steps": 3,
        "logging_steps": 2,
        "max_grad_norm": 0.5,
    }
    args = transformers.TrainingArguments(
        directory, use_cpu=True, report_to="none", disable_tqdm=True, seed=3, **(settings | arguments)
    )
    model = Labelled(prepared(seed)) if model is None else model
    return transformers.Trainer(
        model,
        args,
        train_dataset=samples(),
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        optimizers=(sgd(model), None),
    )


def lightning_trainer(directory, callbacks, **settings):
    defaults = {"max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATED, "log_every_n_steps": 2, "logger": False}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        gradient_clip_val=0.5,
        callbacks=callbacks,
        default_root_dir=directory,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | settings),
    )


def loader():
    return DataLoader(samples(), BATCH)


def assert_fully_binary(callback, model, steps=TOTAL):
    progress = callback.progression.progress()
    assert (progress.step, progress.frontier) == (steps, 2)
    masks = list(masked_modules(model).values())
    assert len(masks) == 4
    assert all(mask.stage is sk.nn.Stage.BINARY and mask.frozen() == mask.mask_numel for mask in masks)


def assert_logged(records):
    """One record in two steps, and what it says of the progression."""
    assert [int(record["step"]) for record in records] == list(range(2, TOTAL + 1, 2))
    assert [int(float(record["stompp/frontier"])) for record in records] == [0] * 5 + [1] * 5 + [2] * 2
    p = [float(record["stompp/p"]) for record in records]
    assert p[0] == pytest.approx((2 / 11) ** 3, rel=1e-6)
    assert p[10:] == [1, 1], "all is committed"
    reached = [float(record["stompp/frozen"]) for record in records]
    assert reached[10:] == [1, 1]
    assert all(0 < value < 1 for value in reached[1:5])
    frozen = [float(record["stompp/frozen_fraction"]) for record in records]
    assert 0 <= frozen[0] < 0.1
    assert 0.4 < frozen[5] < 0.6
    assert frozen[10:] == [1, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """regime -> a Trainer's run that never stopped: its folder of checkpoints, callback, Trainer."""

    @functools.cache
    def run(regime):
        directory = tmp_path_factory.mktemp(regime)
        callback = StoMPPTrainerCallback(**OPTIONS, **REGIMES[regime])
        trainer = hf_trainer(directory, [callback])
        trainer.train()
        return directory, callback, trainer

    return run


@pytest.mark.parametrize("regime", REGIMES)
def test_trainer_ends_fully_binary_and_logs_the_frontier(regime, trained):
    _, callback, trainer = trained(regime)
    assert trainer.state.global_step == TOTAL
    assert_fully_binary(callback, trainer.model)
    assert_logged([record for record in trainer.state.log_history if "loss" in record])


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("stop", [3, 15])  # in the windows of the first and the second unit, inside an epoch
def test_a_resumed_trainer_ends_with_the_bits_of_the_unbroken_one(regime, stop, trained, tmp_path):
    directory, _, whole = trained(regime)
    callback = StoMPPTrainerCallback(**OPTIONS, **REGIMES[regime])
    trainer = hf_trainer(tmp_path, [callback], seed=99)
    trainer.train(resume_from_checkpoint=str(directory / f"checkpoint-{stop}"))
    assert_fully_binary(callback, trainer.model)
    assert_same_state(snapshot(trainer.model), snapshot(whole.model))


def test_trainer_may_restore_the_callback_itself(trained, tmp_path):
    directory, _, whole = trained("ste")
    callbacks = [StoMPPTrainerCallback(regime="ste_free")]
    trainer = hf_trainer(tmp_path, callbacks, seed=99, restore_callback_states_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=str(directory / "checkpoint-15"))
    assert_same_state(snapshot(trainer.model), snapshot(whole.model))


def test_trainer_resumes_no_checkpoint_of_other_settings_or_without_a_progression(trained, tmp_path):
    directory, *_ = trained("ste_free")
    trainer = hf_trainer(tmp_path, [StoMPPTrainerCallback(**OPTIONS | {"refresh": 3})])
    with pytest.raises(ValueError, match=r"refresh must be what the state was saved with: 2.0, got 3.0"):
        trainer.train(resume_from_checkpoint=str(directory / "checkpoint-3"))
    hf_trainer(tmp_path, [], max_steps=3).train()
    trainer = hf_trainer(tmp_path, [StoMPPTrainerCallback()])
    with pytest.raises(ValueError, match="goes on at step 3, but the checkpoint holds no progression's state"):
        trainer.train(resume_from_checkpoint=True)


def test_callbacks_that_follow_see_the_figures(tmp_path):
    seen = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs["stompp/frontier"])

    callbacks = [StoMPPTrainerCallback(total_steps=4), Reporter()]
    hf_trainer(tmp_path, callbacks, num_train_epochs=1, save_strategy="no").train()
    assert seen == [1, 2, 2, 2]  # after 2, 4 and 6 steps, and the summary


def bert_trainer(directory, seed):
    seeded(seed)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        hidden_act="relu",
    )
    tokens = torch.randint(0, 20, (16, 8), generator=torch.Generator().manual_seed(1))
    model = transformers.BertForSequenceClassification(config)
    model, _ = sk.prepare(model, {"input_ids": tokens[:1]}, scale="channel")
    args = transformers.TrainingArguments(
        directory, max_steps=8, save_steps=4, use_cpu=True, report_to="none", disable_tqdm=True, seed=3
    )
    data = [{"input_ids": row, "labels": row[0] % 2} for row in tokens]
    return transformers.Trainer(model, args, train_dataset=data, callbacks=[StoMPPTrainerCallback(**OPTIONS)])


def test_a_pretrained_model_is_resumed_too(tmp_path):
    whole, resumed = bert_trainer(tmp_path, 0), bert_trainer(tmp_path, 99)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert isinstance(resumed.model, transformers.PreTrainedModel)
    assert all(mask.stage is sk.nn.Stage.BINARY for mask in masked_modules(resumed.model).values())
    assert_same_state(snapshot(resumed.model), snapshot(whole.model))


def test_a_best_model_that_is_not_fully_committed_is_told(tmp_path, monkeypatch):
    trainer = hf_trainer(
        tmp_path,
        [StoMPPTrainerCallback(**OPTIONS)],
        eval_dataset=samples(8),
        eval_strategy="steps",
        eval_steps=12,
        save_steps=12,
        load_best_model_at_end=True,
    )
    monkeypatch.setattr(trainer, "evaluate", lambda **kwargs: {"eval_loss": trainer.state.global_step})
    with pytest.warns(RuntimeWarning, match=r"checkpoint-12', in which 1 of 2 units are committed"):
        trainer.train()


def test_trainer_stops_where_nothing_learns_any_more(tmp_path):
    model = Labelled(prepared(net=ToTheEnd, keep_last=False))
    callback = StoMPPTrainerCallback(cooldown=0.5)
    trainer = hf_trainer(tmp_path, [callback], model, save_strategy="no")
    with pytest.warns(RuntimeWarning, match="no gradient reaches a parameter any more"):
        trainer.train()
    assert trainer.state.global_step == TOTAL // 2
    assert_fully_binary(callback, model, TOTAL // 2)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """regime -> Lightning's run that never stopped: its folder of checkpoints and logs, callback, module."""

    @functools.cache
    def run(regime):
        directory = tmp_path_factory.mktemp(regime)
        callback = StoMPPCallback(module="net", **OPTIONS, **REGIMES[regime])
        callbacks = [
            ModelCheckpoint(directory, "epoch-{epoch}", save_top_k=-1, every_n_epochs=1, auto_insert_metric_name=False),
            ModelCheckpoint(directory, "step-{step}", every_n_train_steps=14, auto_insert_metric_name=False),
            callback,
        ]
        module = LitClassifier(prepared())
        lightning_trainer(directory, callbacks, logger=CSVLogger(directory, "", "")).fit(module, loader())
        return directory, callback, module

    return run


@pytest.mark.parametrize("regime", REGIMES)
def test_lightning_ends_fully_binary_and_logs_the_frontier(regime, fitted):
    directory, callback, module = fitted(regime)
    assert_fully_binary(callback, module)
    with open(directory / "metrics.csv") as file:
        assert_logged([record | {"step": int(record["step"]) + 1} for record in csv.DictReader(file)])


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("epoch", [0, 2])  # in the windows of the first and the second unit
def test_a_resumed_fit_ends_with_the_bits_of_the_unbroken_one(regime, epoch, fitted, tmp_path):
    directory, _, whole = fitted(regime)
    callback = StoMPPCallback(module="net", **OPTIONS, **REGIMES[regime])
    module = LitClassifier(prepared(99))
    lightning_trainer(tmp_path, [callback]).fit(module, loader(), ckpt_path=directory / f"epoch-{epoch}.ckpt")
    assert_fully_binary(callback, module)
    assert_same_state(snapshot(module), snapshot(whole))


def test_lightnings_checkpoint_inside_an_epoch_holds_model_and_progression_of_one_step(fitted):
    directory, callback, _ = fitted("ste_free")
    saved = torch.load(directory / "step-14.ckpt", weights_only=True)
    assert saved["global_step"] == 14
    assert saved["callbacks"][callback.state_key]["step"] == 14


def test_lightning_resumes_no_checkpoint_of_other_settings_or_without_a_progression(fitted, tmp_path):
    directory, *_ = fitted("ste_free")
    longer = lightning_trainer(tmp_path, [StoMPPCallback(module="net", **OPTIONS)], max_epochs=5)
    with pytest.raises(ValueError, match=r"total_steps must be what the state was saved with: 24, got 30"):
        longer.fit(LitClassifier(prepared()), loader(), ckpt_path=directory / "epoch-1.ckpt")
    other = lightning_trainer(tmp_path, [StoMPPCallback(**OPTIONS)])  # of another module
    with pytest.raises(ValueError, match="goes on at step 12, but the checkpoint holds no progression's state"):
        other.fit(LitClassifier(prepared()), loader(), ckpt_path=directory / "epoch-1.ckpt")


def test_lightning_may_fit_in_two_calls_and_the_whole_module(tmp_path):
    callback = StoMPPCallback(total_steps=TOTAL, **OPTIONS)
    trainer = lightning_trainer(tmp_path, [callback], max_epochs=2)
    module = LitClassifier(prepared())
    trainer.fit(module, loader())
    assert callback.progression.progress().step == TOTAL // 2
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(module, loader())
    assert_fully_binary(callback, module)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightnings_averaging_adds_no_steps(regime, accumulated, tmp_path):
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    callback = StoMPPCallback(module="net", **OPTIONS, **REGIMES[regime])
    module = LitClassifier(prepared())
    trainer = lightning_trainer(tmp_path, [swa, callback], accumulate_grad_batches=accumulated)
    trainer.fit(module, loader())
    assert_fully_binary(callback, module, EPOCHS * BATCHES // accumulated)
    assert callback.progression.total_steps == EPOCHS * BATCHES // accumulated


@pytest.mark.parametrize(
    ("settings", "callbacks", "steps"),
    [
        ({"accumulate_grad_batches": 1}, {0: 4, 2: 1}, 2 * 3 + 2 * 12),
        ({"accumulate_grad_batches": 1}, {0: 5}, 4 * 3),
        ({"accumulate_grad_batches": 5}, None, 4 * 3),
        ({"max_steps": 13}, None, 13),
        ({"max_epochs": -1, "max_steps": 9}, None, 9),
        ({"limit_train_batches": 5, "max_epochs": 3}, None, 3 * 3),
    ],
    ids=str,
)
def test_lightnings_steps_are_counted_ahead(settings, callbacks, steps, tmp_path):
    callback = StoMPPCallback(module="net", **OPTIONS)
    schedule = [] if callbacks is None else [GradientAccumulationScheduler(callbacks)]
    module = LitClassifier(prepared())
    lightning_trainer(tmp_path, [*schedule, callback], **settings).fit(module, loader())
    assert callback.progression.total_steps == steps
    assert_fully_binary(callback, module, steps)


@pytest.mark.filterwarnings("default:training ended at step:RuntimeWarning")
def test_training_that_ends_early_is_told_when_it_ends(tmp_path):
    callback = StoMPPCallback(total_steps=TOTAL, module="net", **OPTIONS)
    with pytest.warns(RuntimeWarning, match="training ended at step 6 of 24 with 2 units not committed"):
        lightning_trainer(tmp_path, [callback], max_epochs=1).fit(LitClassifier(prepared()), loader())
    with pytest.warns(RuntimeWarning, match="training ended at step 6 of 24 with 2 units not committed"):
        hf_trainer(tmp_path, [StoMPPTrainerCallback(TOTAL, **OPTIONS)], num_train_epochs=1).train()


def test_lightning_names_a_module_that_is_not_there(tmp_path):
    trainer = lightning_trainer(tmp_path, [StoMPPCallback(module="body")])
    with pytest.raises(ValueError, match="module must name a submodule of LitClassifier, got 'body'"):
        trainer.fit(LitClassifier(prepared()), loader())


def test_lightning_stops_where_nothing_learns_any_more(tmp_path):
    callback = StoMPPCallback(cooldown=0.5, freeze_prefix=False)
    module = LitClassifier(prepared(net=ToTheEnd, keep_last=False))
    trainer = lightning_trainer(tmp_path, [callback])
    with pytest.warns(RuntimeWarning, match="no gradient reaches a parameter any more"):
        trainer.fit(module, loader())
    assert trainer.global_step == TOTAL // 2
    assert_fully_binary(callback, module, TOTAL // 2)


@pytest.mark.parametrize(
    ("file", "library", "extra"),
    [
        ("hf_trainer", "transformers", "transformers"),
        ("lightning", "lightning.pytorch", "lightning"),
    ],
)
def test_a_missing_library_is_named(file, library, extra, monkeypatch):
    module = f"stompp_kernels.training.callbacks.{file}"
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'pip install "stompp_kernels\[{extra}\]"'):
        importlib.import_module(module)

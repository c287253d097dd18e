"""The loop for a model, a data set and a loss of one's own: it is the plain loop, to the bit."""

import copy
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import assert_same_masks, make, masks, snapshot
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import stompp_kernels as sk

EPOCHS = 4


def loader(batch_size=8, samples=40):
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(samples, 3, 8, 8, generator=g), torch.randint(4, (samples,), generator=g))
    return DataLoader(data, batch_size=batch_size)


def start(seed=0):
    model, _ = make("residual", seed=seed)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("options", [{}, {"regime": "ste"}, {"regime": "vanilla_ste"}], ids=str)
def test_fit_is_the_plain_loop(options, accumulate):
    options = {**options, "cooldown": 0.2}
    model, optimizer = start()
    plain = copy.deepcopy(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    steps = -(-5 // accumulate) * EPOCHS
    settings = {"progression": options, "accumulate": accumulate, "max_gradient_norm": 1.0, "scheduler": scheduler}
    records = sk.training.fit(model, loader(), epochs=EPOCHS, optimizer=optimizer, **settings)

    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(plain_optimizer, 12)
    progression = sk.StoMPP(plain, steps, **options)
    losses = []
    for _ in range(EPOCHS):
        batches = list(loader())
        for chunk in (batches[i : i + accumulate] for i in range(0, 5, accumulate)):
            plain_optimizer.zero_grad()
            parts = [cross_entropy(plain(x), y) for x, y in chunk]
            for part in parts:
                (part / len(parts)).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            plain_optimizer.step()
            progression.step()
            scheduler.step()
            losses.append(float(torch.stack(parts).detach().mean()))
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())
    assert_same_masks(masks(model), masks(plain))
    assert [record["step"] for record in records] == [steps // EPOCHS * (i + 1) for i in range(EPOCHS)]
    assert records[-1]["loss"] == pytest.approx(sum(losses[-steps // EPOCHS :]) / (steps // EPOCHS))
    assert (records[-1]["frontier"], records[-1]["units"]) == (4, 4)
    assert records[-1]["lr"] == plain_optimizer.param_groups[0]["lr"]


def test_mappings_bring_their_own_loss_and_evaluation_sees_the_model_in_eval_mode():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x, labels):
            return SimpleNamespace(loss=cross_entropy(self.net(x), labels))

    batch = {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 0])}
    model, _ = sk.prepare(Net(), batch)
    optimizer = torch.optim.Adam(model.parameters())
    seen = []
    records = sk.training.fit(
        model,
        [batch, batch],
        epochs=2,
        optimizer=optimizer,
        evaluate=lambda model: seen.append((model.training, torch.is_grad_enabled())) or len(seen),
    )
    assert seen == [(False, False)] * 2
    assert [record["evaluation"] for record in records] == [1, 2]
    assert "frontier" not in records[0]
    assert (
        sk.training.fit(model, [batch], epochs=1, optimizer=optimizer, loss=lambda out, b: 0 * out.loss)[0]["loss"] == 0
    )


def test_a_progression_goes_on_where_it_stood():
    model, optimizer = start()
    whole = copy.deepcopy(model)
    whole_optimizer = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9)
    sk.training.fit(whole, loader(), epochs=4, optimizer=whole_optimizer, progression={"regime": "ste"})
    progression = sk.StoMPP(model, 20, regime="ste")
    with pytest.raises(ValueError, match="progression must have as many steps left as fit makes, 15, got 20"):
        sk.training.fit(model, loader(), epochs=3, optimizer=optimizer, progression=progression)
    stopped = []

    def stop(state):
        stopped.append(state.step)
        state.stop = state.step == 10

    sk.training.fit(model, loader(), epochs=4, optimizer=optimizer, progression=progression, callbacks=[stop])
    assert stopped == list(range(1, 11))
    sk.training.fit(model, loader(), epochs=2, optimizer=optimizer, progression=progression)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in snapshot(model).items())


def test_an_average_takes_masks_over_by_itself():
    model, optimizer = start()
    average = sk.nn.AveragedModel(model, decay=0.5)
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def follow(state):
        average.update_parameters(state.model)
        expected.update_parameters(state.model)
        sk.nn.copy_masks(state.model, expected.module)
        assert_same_masks(masks(average.module), masks(state.model), f"step {state.step}: ")

    sk.training.fit(model, loader(), epochs=EPOCHS, optimizer=optimizer, progression={}, callbacks=[follow])
    for name, parameter in expected.module.named_parameters():
        assert torch.equal(average.module.get_parameter(name), parameter), name
    assert sk.convert(average.module)(torch.randn(2, 3, 8, 8)).isfinite().all()
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\), got 1.5"):
        sk.nn.AveragedModel(model, decay=1.5)


def test_fit_ends_where_nothing_learns_any_more():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    data = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]
    model, _ = sk.prepare(net, data[0][0], keep_last=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning, match="fit ends: no gradient reaches a parameter any more"):
        records = sk.training.fit(model, data, epochs=20, optimizer=optimizer, progression={"cooldown": 0.5})
    assert 5 < len(records) < 20


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.randn(3, 8, 8), 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be an int of at least 1, got 0"),
        ({"accumulate": 1.5}, "accumulate must be an int of at least 1, got 1.5"),
        ({"train_loader": []}, "train_loader must give at least one batch in an epoch"),
        (
            {"train_loader": [torch.ones(2)] * 9},
            r"train_loader must give pairs \(inputs, target\) or mappings, got Tensor",
        ),
        ({"train_loader": DataLoader(Endless())}, "progression must be a StoMPP where train_loader has no length"),
        ({"progression": {"regime": "best"}}, "regime must be one of"),
    ],
)
@pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning")
def test_wrong_arguments_are_named(changes, message):
    model, optimizer = start()
    progression = {} if changes.get("train_loader") != [] else None
    arguments = {"epochs": 2, "optimizer": optimizer, "progression": progression, "train_loader": loader()}
    with pytest.raises(ValueError, match=message):
        sk.training.fit(model, **{**arguments, **changes})

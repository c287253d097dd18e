"""What a recipe adds to StoMPP: a teacher, averaged weights, smoothed and mixed labels, and where a run starts from."""

import copy
import json
import os
import signal
import sys
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import stompp_kernels as sk
from stompp_kernels.cli import main
from stompp_kernels.training import Distillation, trainer
from stompp_kernels.training.build import build_model, build_optimizer, load_data
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.data.augment import CropAndFlip, RandAugment
from stompp_kernels.training.micro_batches import backward
from stompp_kernels.training.objective import Objective
from stompp_kernels.training.processes import Stopped
from stompp_kernels.training.recipe import OptimizerRecipe, read_recipe
from stompp_kernels.training.trainer import train

QUIET = {"device": "cpu", "console": Console(quiet=True)}
SMALL = [
    *("model.name=small_resnet", "model.options.widths=[8, 8]", "model.options.strides=[1, 2]", "data.name=digits"),
    *(
        "data.options.train_limit=128",
        "data.options.test_limit=100",
        "epochs=4",
        "batch_size=32",
        "diagnostics_every=4",
    ),
]
MODERN = [
    "ema=0.8",
    "loss.label_smoothing=0.1",
    "accumulate=2",
    "optimizer.weight_decay=0.01",
    "optimizer.decay=matrices",
]


def recipe(*changes):
    keys = {change.partition("=")[0] for change in changes}
    rest = [change for change in [*SMALL, "progression.regime=ste"] if change.partition("=")[0] not in keys]
    return read_recipe(None, [*rest, *changes])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A float run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    result = train(read_recipe(None, [*SMALL, "model.binarize=nothing", "ema=0.8"]), folder, **QUIET)
    assert (result["frontier"], result["units"], result["steps"]) == (0, 0, 16)
    return folder


def student_and_teacher():
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    student, _ = sk.prepare(sk.models.SmallResNet(widths=(8, 8), strides=(1, 2)), x)
    return student.train(), sk.models.SmallResNet(widths=(16, 16), strides=(1, 2)), x, y


def test_the_loss_of_a_teacher_is_its_formula():
    student, teacher, x, y = student_and_teacher()
    features = {"blocks.1": "blocks.1"}
    loss = Distillation(student, teacher, weight=0.7, temperature=3.0, features=features, feature_weight=2.0)
    seen = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.blocks[1].register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    output = student(x)
    logits, expected = output.detach(), teacher(x)
    soft = (F.softmax(expected / 3, 1) * (F.log_softmax(expected / 3, 1) - F.log_softmax(logits / 3, 1))).sum(1).mean()
    maps = {name: F.normalize(value.square().mean(1).flatten(1)) for name, value in seen.items()}
    distance = (maps["student"] - maps["teacher"]).square().sum(1).mean()
    wanted = 0.3 * F.cross_entropy(logits, y) + 0.7 * 9 * soft + 2 * distance
    value = loss(output, y)
    torch.testing.assert_close(value, wanted)
    value.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.fc.weight.grad is not None
    assert not teacher.training


def test_a_teacher_runs_with_the_student_in_training_mode_only_and_is_not_copied():
    student, teacher, x, y = student_and_teacher()
    loss = Distillation(student, teacher)
    with pytest.raises(RuntimeError, match="the student must run in training mode before the loss is taken"):
        loss(student.eval()(x), y)
    average = sk.nn.AveragedModel(student, decay=0.9)
    assert copy.deepcopy(loss) is loss
    loss(student.train()(x), y)
    loss.remove()
    assert not student._forward_pre_hooks
    student(x)
    with pytest.raises(RuntimeError, match="the teacher did not run"):
        loss(student(x), y)
    assert average.module(x).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, r"weight must be in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"feature_weight": -1.0}, "feature_weight must not be negative, got -1.0"),
        ({"features": {"layer9": "blocks.1"}}, "features must name layers of the student, which has no 'layer9'"),
        ({"features": {"blocks.1": "layer9"}}, "features must name layers of the teacher, which has no 'layer9'"),
        ({"features": {"blocks.1": "blocks.0"}}, "features of 'blocks.1' and of the teacher's 'blocks.0' must agree"),
        ({"features": {"fc": "blocks.1"}}, "features of 'fc' and of the teacher's 'blocks.1' must agree"),
    ],
)
def test_what_cannot_be_distilled_is_named(options, message):
    student, teacher, x, y = student_and_teacher()

    def distil():
        loss = Distillation(student, teacher, **options)
        loss(student(x), y)

    with pytest.raises(ValueError, match=message):
        distil()
    student, _, x, y = student_and_teacher()
    loss = Distillation(student, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match=r"the teacher's logits must have shape \[8, 10\], got \[8, 3\]"):
        loss(student(x), y)


def test_a_modern_run_resumes_to_the_same_bits_and_its_average_is_what_counts(teacher, tmp_path, monkeypatch, capsys):
    changes = [*MODERN, f"distill.teacher={teacher}", "distill.features={'blocks.1' = 'blocks.1'}"]
    whole = train(recipe(*changes), tmp_path / "whole", **QUIET)
    assert (whole["frontier"], whole["units"]) == (4, 4)
    step = trainer.Run._train_step

    def kill_at_9(self, *batch):
        step(self, *batch)
        if self.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.Run, "_train_step", kill_at_9)
    with pytest.raises(Stopped):
        train(recipe(*changes), tmp_path / "broken", **QUIET)
    monkeypatch.undo()
    train(recipe(*changes), tmp_path / "broken", resume=True, **QUIET)
    saved, other = (load_checkpoint(tmp_path / name / LAST) for name in ("whole", "broken"))
    for part in ("model", "average"):
        assert all(torch.equal(value, other[part][key]) for key, value in saved[part].items()), part
    assert not torch.equal(saved["model"]["fc.weight"], saved["average"]["fc.weight"])
    assert torch.equal(saved["model"]["blocks.0.conv1.mask_words"], saved["average"]["blocks.0.conv1.mask_words"])
    for flags in ([], ["--packed"]):
        assert main(["eval", str(tmp_path / "whole"), *flags]) == 0
        assert f"accuracy {whole['accuracy']:.2f} %" in capsys.readouterr().out


def test_a_float_run_is_reported_and_taught_from(teacher, tmp_path, capsys):
    assert main(["report", str(teacher), "--output", str(tmp_path)]) == 0
    (group,) = json.loads((tmp_path / "report.json").read_text())["groups"]
    assert (group["binarize"], group["finished"]) == ("nothing", 1)
    assert main(["eval", str(teacher)]) == 0
    accuracy = json.loads((teacher / "result.json").read_text())["result"]["accuracy"]
    assert f"accuracy {accuracy:.2f} %" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"distill\.teacher must be a run's folder or 'module:function'"):
        train(recipe("distill.teacher=none"), tmp_path / "run", **QUIET)


def test_parts_of_a_batch_have_its_gradient_and_make_one_step(tmp_path):
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3), torch.randn(12, 5), torch.randint(3, (12,))
    found = []
    for parts in (1, 4):
        model.zero_grad()
        batches = list(zip(x.chunk(parts), y.chunk(parts), strict=True))
        loss, outputs = backward(model, F.cross_entropy, batches, nullcontext)
        found.append((loss, torch.cat(outputs), model.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert train(recipe("accumulate=4", "epochs=1"), tmp_path / "run", **QUIET)["steps"] == 4
    with pytest.raises(ValueError, match="accumulate must divide the 32 samples of a process, got 3"):
        train(recipe("accumulate=3"), tmp_path / "no", **QUIET)


def test_norms_and_biases_need_not_decay():
    model = sk.models.SmallResNet(widths=(8, 8), strides=(1, 2))
    decaying, kept = build_optimizer(OptimizerRecipe(weight_decay=0.1, decay="matrices"), model).param_groups
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in kept["params"]} == {1}
    assert min(p.dim() for p in decaying["params"]) == 2
    assert len(decaying["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_a_run_starts_from_weights_on_disk(teacher, tmp_path, monkeypatch):
    state = load_checkpoint(teacher / LAST)["average"]
    safetensors.torch.save_file(
        {key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors"
    )
    torch.save(state, tmp_path / "weights.pt")
    for start in (teacher, tmp_path / "weights.safetensors", tmp_path / "weights.pt"):
        made = build_model(recipe(f"init_from={start}"), load_data(recipe(), torch.device("cpu")), start=True)
        assert torch.equal(made.fc.weight, state["fc.weight"])
        assert torch.equal(made.blocks[0].conv1.weight.sign(), state["blocks.0.conv1.weight"].sign())
    # A second stage starts from a prepared run, and needs the weights no more when it goes on.
    train(recipe("epochs=1", "model.binarize=weights"), tmp_path / "first", **QUIET)
    arguments = ["train", "--init-from", str(tmp_path / "first"), "--model", "small_resnet", "--dataset", "digits"]
    arguments += ["--epochs", "1", "--output", str(tmp_path / "second"), "--device", "cpu", "--batch-size", "256"]
    options = ["--set", "model.options.widths=[8, 8]", "--set", "model.options.strides=[1, 2]"]
    assert main([*arguments, *options]) == 0
    (tmp_path / "first" / LAST).unlink()
    assert main(["train", "--resume", "--output", str(tmp_path / "second")]) == 0


def test_weights_that_do_not_fit_are_named(teacher, tmp_path):
    data = load_data(recipe(), torch.device("cpu"))

    def build(state):
        torch.save(state, tmp_path / "w.pt")
        return build_model(recipe(f"init_from={tmp_path / 'w.pt'}"), data, start=True)

    state = load_checkpoint(teacher / LAST)["model"]
    with pytest.warns(RuntimeWarning, match=r"of state_dict fc.weight are left out: .* \[3, 8\] for \[10, 128\]"):
        build({**state, "fc.weight": torch.ones(3, 8)})
    with pytest.raises(ValueError, match=r"state_dict must have the weights .* lacks 1, such as 'fc\.bias'"):
        build({key: value for key, value in state.items() if key != "fc.bias"})
    with pytest.raises(ValueError, match="init_from must hold a state dict of tensors"):
        build([1, 2])
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    for name, kind in (("bad.pt", ValueError), ("none.pt", FileNotFoundError)):
        with pytest.raises(kind, match="init_from must"):
            build_model(recipe(f"init_from={tmp_path / name}"), data, start=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ema=1", r"ema must be in \[0, 1\), got 1"),
        ("loss.label_smoothing=1", "loss.label_smoothing must be in"),
        ("loss.mixup=-1", "loss.mixup must not be negative"),
        ("accumulate=0", "accumulate must be positive"),
        ("optimizer.decay=none", "optimizer.decay must be one of"),
        ("distill.weight=0.5", "the recipe must have 'distill.teacher'"),
        ("optimizer.decay=matrices", "optimizer.decay has no effect without optimizer.weight_decay"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        recipe(change)


def test_randaugment_changes_each_image_by_its_own_draw_alone(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torchvision.transforms", None)
        with pytest.raises(ImportError, match="augment='randaugment' is torchvision's"):
            RandAugment(16)
    pytest.importorskip("torchvision.transforms.v2")
    augmentation, g = RandAugment(16), torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=g)
    draws, state = augmentation.draw(6, g), torch.get_rng_state()
    changed = augmentation.apply(images, draws)
    assert (changed.dtype, changed.shape) == (torch.uint8, images.shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augmentation.apply(images[2:4], draws[2:4]), changed[2:4])
    assert not torch.equal(changed, CropAndFlip(16).apply(images, draws[:, :3]))


def test_labels_are_mixed_as_torchvision_does_and_only_with_it(tmp_path, monkeypatch):
    data = load_data(recipe(), torch.device("cpu"))
    model = build_model(recipe(), data)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torchvision.transforms", None)
        with pytest.raises(ImportError, match=r"loss\.mixup and loss\.cutmix are torchvision's"):
            Objective(recipe("loss.mixup=0.2"), model, data)
    v2 = pytest.importorskip("torchvision.transforms.v2")
    images, labels = next(data.train_batches(0, 32, 0))
    objective = Objective(recipe("loss.cutmix=1"), model, data)
    torch.manual_seed(1)
    mixed, shares = objective.mixed(images, labels)
    torch.manual_seed(1)
    expected = v2.CutMix(alpha=1.0, num_classes=10)(images, labels)
    assert torch.equal(mixed, expected[0])
    assert torch.equal(shares, expected[1])
    torch.testing.assert_close(shares.sum(1), torch.ones(32))
    result = train(recipe("loss.mixup=0.2", "loss.cutmix=1", "loss.label_smoothing=0.1"), tmp_path / "run", **QUIET)
    assert result["frontier"] == 4

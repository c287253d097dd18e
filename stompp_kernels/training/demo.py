"""The demo: a residual binary network on handwritten digits, from scratch to packed bits."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from stompp_kernels import native
from stompp_kernels.bench.machine import machine
from stompp_kernels.bench.turns import compare
from stompp_kernels.conversion import convert, load_packed, prepare, save_packed
from stompp_kernels.default_dtype import default_dtype
from stompp_kernels.files import check_can_be_written, write_json
from stompp_kernels.nn import BinaryLayer, float_simulation
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.terminal import terminal
from stompp_kernels.training.build import build_model, load_data
from stompp_kernels.training.data import Data
from stompp_kernels.training.evaluate import accuracy, predict
from stompp_kernels.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, ProgressionRecipe, Recipe
from stompp_kernels.training.trained import load_trained, time_network
from stompp_kernels.training.trainer import train

if TYPE_CHECKING:
    from rich.console import Console

EPOCHS = 60
BATCH = 64  # of the timings


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds for a batch of one packed layer and of the float modules that it stands for."""

    name: str
    float_ms: float
    packed_ms: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo's table shows; see :func:`run`."""

    accuracy: float
    packed_accuracy: float
    different_predictions: int
    test_images: int
    largest_logit_difference: float
    train_seconds: float
    fp32_bytes: int
    packed_bytes: int
    binarized_fp32_bytes: int
    binarized_packed_bytes: int
    layers: tuple[LayerTime, ...]
    network_ms: dict[int, tuple[float, float]]  # batch size -> (float, packed)
    fast_accuracy: float | None = None  # with float_layers="fast"; None where bfloat16 is not multiplied
    fast_different_predictions: int | None = None  # from the packed network's, as above


def recipe_of_demo(regime: str, surrogate: str, seed: int, epochs: int) -> Recipe:
    """The learning rate rises over three epochs and then falls to 0."""
    return Recipe(
        name="demo",
        model=ModelRecipe("small_resnet"),
        data=DataRecipe("digits"),
        optimizer=OptimizerRecipe(lr=0.2, schedule="cosine", warmup=3 / max(epochs, 6)),
        progression=ProgressionRecipe(regime=regime, surrogate=surrogate, refresh=20, warmup=0.1, cooldown=0.25),
        epochs=epochs,
        batch_size=64,
        seed=seed,
        evaluate_every=5,
        checkpoint_every=epochs,
        diagnostics_every=0,
    )


@default_dtype(torch.float32)
def run(
    regime: str = "ste",
    surrogate: str = "clip",
    seed: int = 0,
    epochs: int = EPOCHS,
    output: Path | None = None,
    results: Path | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Trains, converts, checks the packed network against the float simulation on every test image, and times both.

    Args:
        regime, surrogate, seed: as in :class:`stompp_kernels.StoMPP`.
        epochs: training length.
        output: where to keep the packed network; None: nowhere.
        results: where to write what the table shows, as JSON; None: nowhere.

    Raises:
        RuntimeError: the packed network predicts another digit than the float simulation for a test image.
    """
    console = console or terminal()
    for path in filter(None, (output, results)):
        check_can_be_written(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of_demo(regime, surrogate, seed, epochs)
    data = load_data(recipe, torch.device("cpu"))
    float_model = build_model(recipe, data, prepared=False)  # the side that the packed network is timed against
    report = prepare(float_model, data.example_inputs())[1]
    console.print(f"{len(report.binarized())} of {len(report.rows)} layers are binarized:\n{report}\n", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(recipe, Path(folder) / "run", device="cpu", console=console)
        model = load_trained(Path(folder) / "run")[0]
        path = output or Path(folder) / "digits.safetensors"
        packed_bytes = save_packed(convert(model), path)
        packed = load_packed(path)
    result = _compare(model, float_model.eval(), packed, data, packed_bytes, trained["seconds"])
    _print_result(result, console)
    if results is not None:
        settings = {"regime": regime, "surrogate": surrogate, "seed": seed, "epochs": epochs}
        write_json(results, {"settings": settings, "machine": machine(), "result": asdict(result)})
    if result.different_predictions:
        raise RuntimeError(f"the packed network differs on {result.different_predictions} test images")
    return result


def _compare(
    model: nn.Module, float_model: nn.Module, packed: fx.GraphModule, data: Data, packed_bytes: int, seconds: float
) -> DemoResult:
    """Predictions, bytes and times of the trained, the original and the packed network."""
    with float_simulation():
        simulated, labels = predict(model, data)
    logits, _ = predict(packed, data)
    images = next(data.test_batches(BATCH))[0]
    assert isinstance(images, Tensor)
    binarized = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    fast = predict(convert(model, float_layers="fast"), data)[0] if native.multiplies_bfloat16() else None
    return DemoResult(
        accuracy=accuracy(simulated, labels),
        packed_accuracy=accuracy(logits, labels),
        different_predictions=int((simulated.argmax(1) != logits.argmax(1)).sum()),
        test_images=len(labels),
        largest_logit_difference=float((simulated - logits).abs().max()),
        train_seconds=seconds,
        fp32_bytes=_state_dict_bytes(float_model),
        packed_bytes=packed_bytes,
        binarized_fp32_bytes=sum(4 * layer.weight.numel() for layer in binarized),
        binarized_packed_bytes=sum(_file_bytes(m) for m in packed.modules() if isinstance(m, PackedLayer)),
        layers=_time_layers(float_model, packed, images),
        network_ms={n: time_network(float_model, packed, images[:n]) for n in (1, BATCH)},
        fast_accuracy=None if fast is None else accuracy(fast, labels),
        fast_different_predictions=None if fast is None else int((fast.argmax(1) != logits.argmax(1)).sum()),
    )


def _state_dict_bytes(model: nn.Module) -> int:
    """Size of the state dict as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def _file_bytes(layer: PackedLayer) -> int:
    """Bytes of a packed layer's tensors in a file: weights in the portable order, and the epilogue's constants."""
    return layer.weight.portable_nbytes + sum(b.numel() * b.element_size() for b in layer.buffers())


@torch.no_grad()
def _time_layers(float_model: nn.Module, packed: fx.GraphModule, images: Tensor) -> tuple[LayerTime, ...]:
    """Each packed layer on the words that reach it, against the float modules it replaces on floats of that shape."""
    calls: dict[str, tuple[PackedLayer, tuple[Tensor, ...]]] = {}
    hooks = []
    for name, module in packed.named_modules():
        if isinstance(module, PackedLayer):

            def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                assert isinstance(module, PackedLayer)
                calls[name] = (module, inputs)

            hooks.append(module.register_forward_pre_hook(note))
    packed(images)
    for hook in hooks:
        hook.remove()
    return tuple(_time_layer(float_model, layer, inputs) for layer, inputs in calls.values())


def _time_layer(float_model: nn.Module, layer: PackedLayer, inputs: tuple[Tensor, ...]) -> LayerTime:
    def packed_side() -> Tensor:
        return layer(*inputs)

    chain = [float_model.get_submodule(name) for name in layer.replaces]
    ms = compare({"float": _float_layer(chain, inputs, layer), "packed": packed_side}, 0.3)
    return LayerTime(" + ".join(layer.replaces), ms["float"].median, ms["packed"].median)


def _float_layer(chain: list[nn.Module], inputs: tuple[Tensor, ...], layer: PackedLayer) -> Callable[[], Tensor]:
    """conv -> BatchNorm -> (+ shortcut) -> activation in fp32, channels_last, on random data of the layer's shape."""
    n, h, w, _ = inputs[0].shape
    channels = layer.weight.shape[1] * layer.weight.groups
    x = torch.randn(n, channels, h, w, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    residual = torch.randn_like(chain[0](x)) if len(inputs) > 1 else None

    def call() -> Tensor:
        y = x
        for module in chain[:-1]:
            y = module(y)
        return chain[-1](y if residual is None else y + residual)

    return call


def _print_result(result: DemoResult, console: Console) -> None:
    from rich.table import Table

    table = Table(
        "", "float", "packed", "ratio", title=f"{native.active_implementation()}, {torch.get_num_threads()} threads"
    )
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, left: float, right: float, unit: str, digits: int) -> None:
        table.add_row(name, f"{left:,.{digits}f} {unit}", f"{right:,.{digits}f} {unit}", f"{left / right:.1f}x")

    table.add_row("test accuracy", f"{result.accuracy:.2f} %", f"{result.packed_accuracy:.2f} %", "")
    same = result.test_images - result.different_predictions
    table.add_row("equal predictions", "", f"{same}/{result.test_images}", "")
    table.add_row("largest logit difference", "", f"{result.largest_logit_difference:.1e}", "")
    if result.fast_accuracy is not None:
        table.add_row("accuracy, fast float layers", "", f"{result.fast_accuracy:.2f} %", "")
        other = f"{result.fast_different_predictions}/{result.test_images}"
        table.add_row("predictions they change", "", other, "")
    row("file", result.fp32_bytes, result.packed_bytes, "B", 0)
    row("its binarized layers", result.binarized_fp32_bytes, result.binarized_packed_bytes, "B", 0)
    table.add_section()
    for layer in result.layers:
        row(layer.name, layer.float_ms, layer.packed_ms, "ms", 3)
    table.add_section()
    for batch, (float_ms, packed_ms) in result.network_ms.items():
        row(f"network, batch {batch}", float_ms, packed_ms, "ms", 3)
    console.print(table)
    console.print(
        f"Trained in {result.train_seconds:.0f} s. Accuracy: committed network in fp32 against packed. "
        f"Times: layers at batch {BATCH}; float is the same network in fp32, channels_last.",
        highlight=False,
    )

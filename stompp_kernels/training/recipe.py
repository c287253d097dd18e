"""What a run is: a small TOML or YAML file of the values that differ from the defaults.

    name = "resnet18_cifar10_ste_free"
    epochs = 200
    batch_size = 256

    [model]
    name = "resnet18_cifar"

    [data]
    name = "cifar10"
    path = "$STOMPP_DATA"

    [progression]
    regime = "ste_free"

``extends = "base.toml"`` takes the values of another file, relative to this one, and changes some.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stompp_kernels.ops.checks import SURROGATES, check_choice
from stompp_kernels.progression import StoMPP
from stompp_kernels.progression.settings import BINARIZE, check_settings
from stompp_kernels.training.changes import check_used, keys_of
from stompp_kernels.training.recipe_file import read_values, toml

OPTIMIZERS = ("sgd", "adam", "adamw")
LR_SCHEDULES = ("constant", "linear", "cosine")
DECAYS = ("all", "matrices")
NOTHING = "nothing"
SOFT = "soft"
RESTS = (SOFT, "progression")


@dataclass(frozen=True)
class ModelRecipe:
    """Holds what ``sk.models.create`` is given: ``options`` of the model, ``prepare`` of ``sk.prepare``."""

    name: str
    binarize: str = "both"
    options: dict[str, Any] = field(default_factory=dict)
    prepare: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataRecipe:
    """Holds what ``training.data.load`` is given; $NAME in ``path`` and in ``options`` is read from the environment."""

    name: str
    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerRecipe:
    """Holds the optimizer's settings.

    ``lr`` rises linearly over ``warmup``, a fraction of the run, and then follows ``schedule`` (down to 0).
    ``momentum`` is SGD's; ``max_gradient_norm`` scales down a larger gradient of the whole model. ``weight_decay`` is
    of "all" parameters, or with ``decay`` "matrices" of those with two dimensions or more: not of biases and norms.
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: str = "all"
    schedule: str = "constant"
    warmup: float = 0.0
    max_gradient_norm: float | None = None


@dataclass(frozen=True)
class LossRecipe:
    """Holds what changes cross-entropy: label smoothing, and the alphas of torchvision's MixUp and CutMix; 0: none."""

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class DistillRecipe:
    """Holds the arguments of :class:`stompp_kernels.training.Distillation`.

    ``teacher`` is the folder of a run, $NAME is read from the environment, or "module:function" for a function that
    returns a module. ``features`` maps names of the student's layers to names of the teacher's.
    """

    teacher: str
    weight: float = 0.9
    temperature: float = 1.0
    features: dict[str, Any] = field(default_factory=dict)
    feature_weight: float = 1.0


@dataclass(frozen=True)
class BlockadeRecipe:
    """Says which single activation is treated apart, to study the gradient blockade.

    With ``rest`` "soft" the activation of one unit is committed after ``start``, a fraction of the run, and everything
    else stays soft: with ``surrogate`` "none" no gradient passes it, with a surrogate the blockade is taken out. With
    "progression" the run is that of the other sections, and ``surrogate`` is of that one activation alone. ``unit``
    counts from 1, nearest the input; 0 leaves all activations as they are, to compare with.
    """

    unit: int
    surrogate: str = "none"
    rest: str = "soft"
    start: float = 0.1


def _options_of_progression() -> Any:
    """A dataclass of StoMPP's arguments with their types and defaults, but for those that a recipe gives elsewhere."""
    types = typing.get_type_hints(StoMPP.__init__)
    types["order"] = str  # the names of all units are no part of a recipe
    given_elsewhere = ("model", "total_steps", "binarize", "seed")
    options = [p for p in inspect.signature(StoMPP).parameters.values() if p.name not in given_elsewhere]
    fields = [(option.name, types[option.name], field(default=option.default)) for option in options]
    return dataclasses.make_dataclass("_Options", fields, frozen=True, kw_only=True)


@dataclass(frozen=True)
class ProgressionRecipe(_options_of_progression()):  # type: ignore[misc]  # whose base mypy cannot know
    """The options of :class:`stompp_kernels.StoMPP`, by keyword; see there."""


@dataclass(frozen=True)
class PaperFigure:
    """Holds a figure of the paper to read a run beside: its row, and top-1 accuracy in percent."""

    row: str
    top1: float


@dataclass(frozen=True)
class Recipe:
    """Describes a training run; :func:`read_recipe` makes one.

    Attributes:
        name: of the run.
        model, data, optimizer, progression, loss, distill: the sections of the file; without the last no teacher.
        blockade: the section of that name, for studies; without it all units follow the progression.
        epochs: how often all training samples are seen.
        batch_size: of an optimizer step, over all processes.
        accumulate: parts that a process runs its share of a batch in, one after the other, to take less memory.
        init_from: weights that the float model starts from, before it is prepared: the folder of a run, or a file
            (.safetensors, .pt, .pth) with a state dict; None: random ones.
        ema: decay of an exponential moving average of the weights, in (0, 1), which then is what is evaluated,
            converted and taught from; 0: none.
        seed: of weights, masks, order of samples and augmentation.
        amp: forward and loss run under bfloat16 autocast.
        channels_last: the model's weights and inputs have that memory format.
        compile: the model runs through torch.compile.
        evaluate_every, checkpoint_every: epochs between evaluations and checkpoints; fractions are allowed.
        log_every, diagnostics_every: steps between records; 0: no diagnostics.
        paper: the figure that this run reproduces, or None.

    Raises:
        ValueError: a value is out of range; the message names its key.

    Example:
        >>> from stompp_kernels.training.recipe import read_recipe
        >>> recipe = read_recipe(None, ["model.name=mlp", "data.name=digits", "optimizer.lr=0.05"])
        >>> recipe.optimizer
        OptimizerRecipe(name='sgd', lr=0.05, momentum=0.9, weight_decay=0.0, decay='all', schedule='constant', ...)
    """

    name: str
    model: ModelRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    progression: ProgressionRecipe = field(default_factory=ProgressionRecipe)
    epochs: int = 200
    batch_size: int = 256
    loss: LossRecipe = field(default_factory=LossRecipe)
    distill: DistillRecipe | None = None
    blockade: BlockadeRecipe | None = None
    accumulate: int = 1
    init_from: str | None = None
    ema: float = 0.0
    seed: int = 0
    amp: bool = False
    channels_last: bool = True
    compile: bool = False
    evaluate_every: float = 1.0
    checkpoint_every: float = 1.0
    log_every: int = 50
    diagnostics_every: int = 50
    paper: PaperFigure | None = None

    def __post_init__(self) -> None:
        try:
            check_settings(vars(self.progression))
        except ValueError as error:
            raise ValueError(f"progression.{error}") from error
        check_choice("model.binarize", self.model.binarize, (*BINARIZE, NOTHING))
        if self.blockade is not None:
            self._check_blockade(self.blockade)
        check_choice("optimizer.decay", self.optimizer.decay, DECAYS)
        for name, value in {"loss.label_smoothing": self.loss.label_smoothing, "ema": self.ema}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        check_choice("optimizer.name", self.optimizer.name, OPTIMIZERS)
        check_choice("optimizer.schedule", self.optimizer.schedule, LR_SCHEDULES)
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "log_every": self.log_every}
        positive["accumulate"] = self.accumulate
        every = {"evaluate_every": self.evaluate_every, "checkpoint_every": self.checkpoint_every}
        for name, value in {**positive, **every, "optimizer.lr": self.optimizer.lr}.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        mixing = {"loss.mixup": self.loss.mixup, "loss.cutmix": self.loss.cutmix}
        for name, value in {"seed": self.seed, "diagnostics_every": self.diagnostics_every, **mixing}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not 0 <= self.optimizer.warmup < 1:
            raise ValueError(f"optimizer.warmup must be in [0, 1), got {self.optimizer.warmup}")

    def _check_blockade(self, blockade: BlockadeRecipe) -> None:
        check_choice("blockade.surrogate", blockade.surrogate, SURROGATES)
        check_choice("blockade.rest", blockade.rest, RESTS)
        if blockade.unit < 0:
            raise ValueError(f"blockade.unit must not be negative, got {blockade.unit}")
        if not 0 <= blockade.start < 1:
            raise ValueError(f"blockade.start must be in [0, 1), got {blockade.start}")
        check_choice("model.binarize", self.model.binarize, ("both",))
        if blockade.rest != SOFT:
            check_choice("progression.regime", self.progression.regime, ("ste_free",))

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values, as :func:`recipe_from_dict` reads them."""
        return dataclasses.asdict(self)


def read_recipe(path: str | os.PathLike[str] | None, changes: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a ``.toml``, ``.yaml``, ``.yml`` (needs PyYAML) or ``.json`` file; None: the changes are all there is.
        changes: "section.key=value" each, with a value as TOML writes it, or a bare word for a string.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is unknown or missing, a value is of another type or out of range, or a change is given twice
            or changes nothing of the run; the message names it.

    Example:
        >>> from stompp_kernels.training.recipe import read_recipe
        >>> recipe = read_recipe(None, ["model.name=mlp", "data.name=digits", "epochs=3"])
        >>> recipe.model.name, recipe.epochs
        ('mlp', 3)
    """
    values = {"name": "run"} if path is None else read_values(path)
    keys = keys_of(changes)
    for change in changes:
        apply_change(values, change)
    recipe = recipe_from_dict(values)
    check_used(keys, [recipe])
    return recipe


def apply_change(values: dict[str, Any], change: str) -> None:
    """Sets one of the nested values, in place, by "section.key=value", as in :func:`read_recipe`.

    Raises:
        ValueError: it is no such text, or a value is in the way of a section.
    """
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"a change must be key=value, got {change!r}")
    try:
        value = toml().loads(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()  # a bare word
    set_value(values, key.strip(), value)


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets one of the nested values, in place; ``key`` is dotted. Errors as by :func:`apply_change`."""
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key!r} names no value of a recipe: {section!r} has none below it")
    values[last] = value


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Makes a recipe from nested plain values; errors as in :func:`read_recipe`."""
    return _build(Recipe, values, "")


def expand(value: Any, where: str) -> Any:
    """Replaces $NAME in the strings of ``value`` by the environment's.

    Raises:
        ValueError: a variable is not set; the message names it.
    """
    if isinstance(value, dict):
        return {key: expand(item, f"{where}.{key}") for key, item in value.items()}
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ValueError(f"{where} is {value!r}, but that variable is not set in the environment")
    return os.path.expanduser(expanded)


def _build(kind: Any, values: Any, where: str) -> Any:
    """Makes a dataclass of this kind from a mapping; ``where`` is the key that holds it."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'a recipe'} must hold keys and values, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise ValueError(f"unknown key {prefix + unknown[0]!r} in the recipe; allowed: {', '.join(fields)}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
    ]
    if required:
        remedy = "" if where else ": give the file of a recipe, or options such as --model and --dataset"
        raise ValueError(f"the recipe must have {prefix + required[0]!r}{remedy}")
    types = typing.get_type_hints(kind)
    return kind(**{key: _convert(types[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is dict:
        kind = dict
    elif options:  # X | None, X | str
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        kind = str if str in options and isinstance(value, str) else options[0]
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value

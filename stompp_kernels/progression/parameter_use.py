"""Which forward reads which parameter, in every mode in which a model can run.

A layer's weights may be read by others than the layer: a fused kernel that takes another layer's weights, a decoder
that multiplies by its encoder's transposed weights. Once the layer is binary they would find latent weights there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stompp_kernels.progression.example_run import as_arguments, forwards, undisturbed

# Ops that multiply an input by a weight. In inference mode composite ops arrive whole.
_PRODUCTS = re.compile(
    r"(\w*_)?(add|b|badd|addb)?mm|(add)?mv|dot|matmul|einsum|tensordot|(mkldnn_|bi|_tri)?linear"
    r"|conv(_transpose)?[123]d|_?convolution(_overrideable)?|lstm|gru|rnn_tanh|rnn_relu|mkldnn_rnn_layer|_cudnn_rnn"
    r"|_thnn_fused_(lstm|gru)_cell|_native_multi_head_attention|_transformer_encoder_layer_fwd"
)


@dataclass(frozen=True)
class Read:
    """A read of a parameter by a forward that is not of its own module.

    Attributes:
        reader: name of the innermost module that ran.
        mode: in words, as a key of :attr:`ParameterUse.called`.
    """

    reader: str
    mode: str


@dataclass
class ParameterUse:
    """Tells what a model's runs did with its parameters.

    Attributes:
        called: for each mode in which the model could run, the names of the modules whose forward ran.
        reads: by name of a parameter, the first read of its values outside the forward of the module that holds it.
        products: by name of a module, a parameter or buffer of its own, of two dimensions or more, that something
            computed from the input was multiplied by.
    """

    called: dict[str, set[str]] = field(default_factory=dict)
    reads: dict[str, Read] = field(default_factory=dict)
    products: dict[str, str] = field(default_factory=dict)

    def ran(self) -> set[str]:
        """Returns the names of the modules that ran in some mode."""
        return set().union(*self.called.values())

    def read_elsewhere(self, layer: str) -> tuple[str, Read] | None:
        """Finds a parameter of a layer that others read, and its reader; None where there is none."""
        for parameter in ("weight", "bias"):
            if (read := self.reads.get(f"{layer}.{parameter}")) is not None:
                return parameter, read
        return None


def trace_parameter_use(model: nn.Module, example_inputs: Any) -> ParameterUse:
    """Runs the model in eval and in training mode, with and without gradients, and in eval in inference mode.

    BatchNorm stays in eval mode, for in training it refuses a single value per channel. A mode in which the model
    cannot run, other than the first, is left out: in training a model may need more than example inputs. The runs
    leave no trace.

    Args:
        example_inputs: as in :func:`stompp_kernels.progression.trace_calls`.
    """
    modes: tuple[tuple[str, bool, Callable[[], Any]], ...] = (
        ("in eval mode without gradients", False, torch.no_grad),
        ("in eval mode with gradients", False, torch.enable_grad),
        ("in eval mode in inference mode", False, torch.inference_mode),
        ("in training mode without gradients", True, torch.no_grad),
        ("in training mode with gradients", True, torch.enable_grad),
    )
    use = ParameterUse()
    args, kwargs = as_arguments(example_inputs)
    for mode, training, context in modes:
        watch = _Watch(model, use, mode)
        with ExitStack() as stack:
            for entered in (undisturbed(model), _attributes_kept(model), forwards(model, watch.observe)):
                stack.enter_context(entered)
            if "torch._dynamo" in sys.modules:  # compiled code runs no module's forward
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            model.train(training)
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
            stack.enter_context(context())
            stack.enter_context(watch)
            try:
                model(*args, **kwargs)
            except Exception:
                if mode == modes[0][0]:
                    raise
                continue
        use.called[mode] = watch.called
    return use


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Forgets what a run keeps on its modules: a tensor made in inference mode is of no use to later runs."""
    kept = [(vars(m), dict(vars(m))) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for store, before in kept:
            for name in store.keys() - before.keys():
                del store[name]
            store.update(before)


def extent(tensor: Tensor) -> tuple[int, int, int] | None:
    """Returns the memory that a tensor's entries span: its storage, the first byte and the byte after the last."""
    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset() * tensor.element_size()
    return tensor.untyped_storage()._cdata, start, start + span * tensor.element_size()


def named_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yields (module, name, tensor) of each module's own parameters and buffers; a module of two names once."""
    for name, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            yield from ((name, key, tensor) for key, tensor in own.items() if tensor is not None)


class _Watch(TorchDispatchMode):
    """Sees each op of a run, and which of its operands are parameters or buffers, or computed from these alone."""

    def __init__(self, model: nn.Module, use: ParameterUse, mode: str) -> None:
        super().__init__()
        self._use, self._mode = use, mode
        self._running: list[str] = []
        self.called: set[str] = set()
        self._owners: dict[int, list[tuple[int, int, str, str]]] = {}
        self._matrices: dict[tuple[str, str], int] = {}
        for module, name, tensor in named_tensors(model):
            if (where := extent(tensor)) is not None:
                self._owners.setdefault(where[0], []).append((where[1], where[2], module, name))
                if tensor.dim() > 1:
                    self._matrices[module, name] = tensor.numel()
        # The tensors, so that an id names one, and what each was computed from.
        self._derived: dict[int, tuple[Tensor, frozenset[tuple[str, str]]]] = {}

    def observe(self, name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*inputs: Any, **keywords: Any) -> Any:
            self.called.add(name)
            self._running.append(name)
            try:
                return forward(*inputs, **keywords)
            finally:
                self._running.pop()

        return observed

    def _own(self, tensor: Tensor) -> frozenset[tuple[str, str]]:
        """The parameters and buffers whose memory this is."""
        where = extent(tensor)
        candidates = () if where is None else self._owners.get(where[0], ())
        return frozenset((m, n) for start, stop, m, n in candidates if where and start < where[2] and where[1] < stop)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        own = [self._own(tensor) for tensor in operands]
        name = func.overloadpacket.__name__
        if any(own) and not _leaves_values_unread(func, name, [self._own(tensor) for tensor in outputs]):
            self._note_reads(own)
        sources = [o or self._derived.get(id(t), (t, o))[1] for o, t in zip(own, operands, strict=True)]
        if _PRODUCTS.fullmatch(name) and any(sources) and not all(sources):
            self._note_products(sources)
        # A number beside them is no input.
        if any(sources) and all(s or not t.dim() for s, t in zip(sources, operands, strict=True)):
            self._derived.update((id(output), (output, frozenset().union(*sources))) for output in outputs)
        return result

    def _note_reads(self, own: Iterable[frozenset[tuple[str, str]]]) -> None:
        for owners in own:
            if not any(module in self._running for module, _ in owners):
                for module, name in owners:
                    reader = self._running[-1] if self._running else ""
                    self._use.reads.setdefault(f"{module}.{name}", Read(reader, self._mode))

    def _note_products(self, sources: Iterable[frozenset[tuple[str, str]]]) -> None:
        for owners in sources:
            matrices = [owner for owner in owners if owner in self._matrices]
            running = [owner for owner in matrices if owner[0] in self._running]
            # The largest first: what it may be scaled by matters less.
            for module, name in sorted(running or matrices, key=lambda owner: (-self._matrices[owner], owner)):
                self._use.products.setdefault(module, name)


def _leaves_values_unread(func: Any, name: str, outputs: list[frozenset[tuple[str, str]]]) -> bool:
    """Returns whether an op of a parameter takes its shape, type and place only, or gives a view of it."""
    if name.startswith("new_") or name.endswith("_like"):
        return True
    return bool(outputs) and all(outputs) and not func._schema.is_mutable

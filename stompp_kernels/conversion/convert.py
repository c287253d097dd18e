"""convert: the packed inference twin of a fully committed model."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.thresholds import fold_limits, fold_threshold
from stompp_kernels.nn import (
    BinaryConv2d,
    BinaryLayer,
    BinaryLinear,
    PackBatchNorm,
    PackedConv2d,
    PackedLinear,
    PackSigns,
    ProgressiveActivation,
    Stage,
    UnpackSigns,
)
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, Threshold

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_NOTHING_IN_EVAL = (nn.Identity, nn.Dropout, nn.Dropout2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class _Tracer(fx.Tracer):
    """Keeps the progressive modules whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (BinaryLayer, ProgressiveActivation)) or super().is_leaf_module(m, module_qualified_name)


@dataclass
class _Chain:
    """layer -> per-channel float modules (-> + residual) -> activation, none of it used elsewhere."""

    layer: fx.Node
    steps: list[fx.Node]  # in order of execution, the layer's node excluded
    residual: fx.Node | None  # a committed activation


def convert(model: nn.Module) -> fx.GraphModule:
    """The packed inference network of a model whose units are all committed.

    Committed layers run on bits. Where a chain layer -> BatchNorm -> activation, with or without a +-1 shortcut added
    before the activation, ends in a committed activation, it becomes one kernel that reads and writes bits, its
    arithmetic folded to integer thresholds that give the float network's signs exactly. Everything else stays a float
    module. The result equals the model in eval mode: bits identical, floats the same arithmetic.

    Args:
        model: prepared and trained; left as it is. Its graph must be traceable by torch.fx.

    Returns:
        A torch.fx.GraphModule in eval mode; ``sk.explain`` tells what became of each layer.

    Raises:
        ValueError: a layer is not committed, a parameter is not float32, or the model cannot be traced.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BinaryLayer)}
    if not layers:
        raise ValueError("model has no binary layer to convert")
    open_layers = [
        name
        for name, m in layers.items()
        if m.stage is not Stage.BINARY or (m.activation is not None and not m.input_is_binary)
    ]
    if open_layers:
        raise ValueError(f"model must be fully committed; not yet: {', '.join(open_layers)}")
    float_inputs = [name for name, m in layers.items() if m.activation is None]
    if float_inputs:
        raise ValueError(f"model must have binary activations too; the inputs of {', '.join(float_inputs)} are float")
    other = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    if other:
        raise ValueError(f"model must have float32 parameters (model.float()), got {', '.join(sorted(other))}")
    model = copy.deepcopy(model).eval()
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"model cannot be traced by torch.fx: {error}") from error
    return _Converter(model, graph).run()


class _Converter:
    """Rewrites one traced graph; see :func:`convert`."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.module = fx.GraphModule(model, graph)
        self.graph = self.module.graph
        self.modules = dict(self.module.named_modules())
        # (float node, whether its words are NHWC) -> node of its sign bits
        self.bits: dict[tuple[fx.Node, bool], fx.Node] = {}
        self.images: dict[fx.Node, bool] = {}  # committed activation -> whether its words are NHWC

    def run(self) -> fx.GraphModule:
        for node in list(self.graph.nodes):
            if isinstance(self._module(node), _NOTHING_IN_EVAL):
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)
            elif node.op == "call_method" and node.target == "view":
                node.target = "reshape"  # packed convolutions write channels_last, of which not every view exists
        activations = [n for n in self.graph.nodes if isinstance(self._module(n), ProgressiveActivation)]
        for node in list(self.graph.nodes):
            module = self._module(node)
            if isinstance(module, BinaryLayer):
                self._pack_layer(node, module)
            elif node in activations and self._is_committed(node):
                self._pack_activation(node)
        for node in activations:
            if node in self.images:
                self._unpack_for_float_users(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        return self.module.eval()

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _is_committed(self, node: fx.Node) -> bool:
        module = self._module(node)
        return isinstance(module, ProgressiveActivation) and module.stage is Stage.BINARY

    def _add(self, before: fx.Node, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        """A call of a new submodule, placed before a node."""
        self.module.add_submodule(name, module)
        self.modules[name] = module
        with self.graph.inserting_before(before):
            return self.graph.call_module(name, args)

    def _bits_of(self, value: fx.Node, user: fx.Node, images: bool) -> fx.Node:
        """The sign bits of a float node, packed before `user` unless they exist already."""
        if (value, images) not in self.bits:
            name = f"{_flat(user)}_pack"
            self.bits[value, images] = self._add(user, name, PackSigns(images), value)
        return self.bits[value, images]

    def _normalized_bits(self, value: fx.Node, user: fx.Node, images: bool) -> fx.Node | None:
        """The sign bits of a BatchNorm's output, from its input in one pass; None if it is no such node."""
        norm = self._module(value)
        if not isinstance(norm, _BATCH_NORMS) or norm.running_mean is None or list(value.users) != [user]:
            return None
        # [B, C, L] has its channels in the middle.
        if images != isinstance(norm, nn.BatchNorm2d) or (not images and not self._is_features(user)):
            return None
        shape = (1, norm.num_features, 1, 1) if images else (1, norm.num_features)

        def function(x: Tensor) -> Tensor:
            return norm(x.reshape(shape)).reshape(-1)

        packer = PackBatchNorm(norm.num_features, images)
        with torch.no_grad():
            packer.low, packer.high = fold_limits(function, norm.num_features, norm.running_mean.device)
        source = value.args[0]
        assert isinstance(source, fx.Node)
        return self._add(user, f"{_flat(user)}_pack", packer, source)

    def _is_features(self, node: fx.Node) -> bool:
        """Whether an activation is [B, K]."""
        module = self._module(node)
        assert isinstance(module, ProgressiveActivation) and module.mask_shape is not None
        return len(module.mask_shape) == 1

    def _pack_layer(self, node: fx.Node, layer: BinaryLayer) -> None:
        """A committed layer reads bits and writes floats; _pack_activation may yet make it write bits."""
        value = node.args[0]
        assert isinstance(value, fx.Node)
        words = self._bits_of(value, node, isinstance(layer, BinaryConv2d))
        name = str(node.target)
        packed = _packed_layer(layer, _affine(layer), (name,))
        replacement = self._add(node, f"{name}_packed", packed, words)
        replacement.meta["layer"] = layer
        node.replace_all_uses_with(replacement)
        self.graph.erase_node(node)

    def _pack_activation(self, node: fx.Node) -> None:
        chain = self._match(node)
        if chain is None:
            # Whatever feeds it is float: sign and pack in one pass.
            value = node.args[0]
            assert isinstance(value, fx.Node)
            images = self.images[node] = self._is_image(node)
            self.bits[node, images] = self._normalized_bits(value, node, images) or self._bits_of(value, node, images)
            return
        layer = chain.layer.meta["layer"]
        images = self.images[node] = isinstance(layer, BinaryConv2d)
        epilogue = self._fold(chain, layer)
        words = chain.layer.args[0]
        assert isinstance(words, fx.Node)
        args = [words] if chain.residual is None else [words, self.bits[chain.residual, images]]
        name = str(chain.layer.target).removesuffix("_packed")
        replaces = (name, *(str(step.target) for step in chain.steps if step.op == "call_module"), str(node.target))
        self.bits[node, images] = self._add(node, f"{name}_fused", _packed_layer(layer, epilogue, replaces), *args)

    def _is_image(self, node: fx.Node) -> bool:
        """Whether an activation is [B, C, H, W], and not [..., K] of that many dimensions."""
        module = self._module(node)
        assert isinstance(module, ProgressiveActivation) and module.mask_shape is not None
        linear = any(isinstance(self._module(user), BinaryLinear) for user in node.users)
        return len(module.mask_shape) == 3 and not linear

    def _match(self, node: fx.Node) -> _Chain | None:
        """The chain that ends in this committed activation, or None."""
        steps: list[fx.Node] = []
        residual = None
        current, user = node.args[0], node
        while isinstance(current, fx.Node) and list(current.users) == [user]:
            if "layer" in current.meta:
                chain = _Chain(current, steps[::-1], residual)
                return chain if self._is_per_output(chain, node) else None
            steps.append(current)
            module = self._module(current)
            # Without running statistics BatchNorm depends on the batch in eval mode too.
            if isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
                current, user = current.args[0], current
            elif residual is None and self._is_addition(current):
                sides = self._sides(current, node)
                if sides is None:
                    return None
                user, (current, residual) = current, sides
            else:
                return None
        return None

    def _is_per_output(self, chain: _Chain, activation: fx.Node) -> bool:
        """Whether the chain's channels are the layer's outputs, and its residual's words are in their order."""
        images = isinstance(chain.layer.meta["layer"], BinaryConv2d)
        if chain.residual is not None and (chain.residual, images) not in self.bits:
            return False
        module = self._module(activation)
        assert isinstance(module, ProgressiveActivation) and module.mask_shape is not None
        # BatchNorm's channels are dimension 1, a linear layer's outputs the last.
        norms = any(isinstance(self._module(step), _BATCH_NORMS) for step in chain.steps)
        return images or len(module.mask_shape) == 1 or not norms

    @staticmethod
    def _is_addition(node: fx.Node) -> bool:
        function = node.op == "call_function" and node.target in _ADDITIONS
        method = node.op == "call_method" and node.target in ("add", "add_")
        return (function or method) and len(node.args) == 2 and not node.kwargs

    def _sides(self, addition: fx.Node, activation: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """(chain side, +-1 side of the same shape), or None."""
        for side, other in (addition.args, addition.args[::-1]):
            if not isinstance(side, fx.Node) or not isinstance(other, fx.Node) or other not in self.images:
                continue
            shapes = [
                m.mask_shape for m in map(self._module, (other, activation)) if isinstance(m, ProgressiveActivation)
            ]
            if len(shapes) == 2 and shapes[0] == shapes[1]:
                return side, other
        return None

    def _fold(self, chain: _Chain, layer: BinaryLayer) -> Threshold:
        """Runs the chain's own modules on integers; see conversion/thresholds.py."""
        scale = _affine(layer)
        images = isinstance(layer, BinaryConv2d)
        channels = layer.weight.shape[0]

        def function(acc: Tensor, residual: float | None) -> Tensor:
            y = acc * scale.scale
            y = y + scale.bias
            value = y.reshape(1, channels, 1, 1) if images else y.reshape(1, channels)
            for step in chain.steps:
                module = self._module(step)
                value = value + residual if module is None else module(value)
            return value.reshape(channels)

        with torch.no_grad():
            K = layer.weight[0].numel()
            return fold_threshold(function, K, channels, chain.residual is not None, layer.weight.device)

    def _unpack_for_float_users(self, node: fx.Node) -> None:
        images = self.images[node]
        words = self.bits[node, images]
        users = [user for user in node.users if user is not words]
        if users:
            module = self._module(node)
            assert isinstance(module, ProgressiveActivation) and module.mask_shape is not None
            channels = module.mask_shape[0 if images else -1]
            floats = self._add(node, f"{_flat(node)}_unpack", UnpackSigns(channels, images), words)
            node.replace_all_uses_with(floats, delete_user_cb=lambda user: user is not words)


def _flat(node: fx.Node) -> str:
    """A submodule name for a node: its target's, at the top level."""
    return str(node.target).replace(".", "_") if node.op == "call_module" else node.name


def _affine(layer: BinaryLayer) -> Affine:
    """The layer's own scales and bias as an epilogue."""
    N, device = layer.weight.shape[0], layer.weight.device
    own = layer.output_scale()
    scale = torch.ones(N, device=device) if own is None else own.detach().float().expand(N).contiguous()
    bias = torch.zeros(N, device=device) if layer.bias is None else layer.bias.detach().float().clone()
    return Affine(scale, bias)


def _packed_layer(layer: BinaryLayer, epilogue: Affine | Threshold, replaces: tuple[str, ...]) -> PackedLayer:
    weight = layer.packed_weight()
    if isinstance(layer, BinaryConv2d):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.padding_value)
        return PackedConv2d(weight, epilogue, *geometry, replaces)
    return PackedLinear(weight, epilogue, replaces)

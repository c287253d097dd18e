"""A traced network's committed layers, rewritten to run on bits.

Two passes over the graph. The first, in order of execution, gives each committed layer a packed twin, keeps signs as
words (activations, max-pooling), and folds a chain that ends in signs decided on integers into thresholds. The second
folds what follows a layer that still writes floats: BatchNorm, a float shortcut, and the packing of the sum.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.float_convs import pack_float_convs
from stompp_kernels.conversion.packing.folding import fold_affine, fold_limits, fold_norm, fold_threshold
from stompp_kernels.conversion.packing.names import rename_for_python
from stompp_kernels.conversion.packing.nodes import (
    BATCH_NORMS,
    flat_name,
    fresh_name,
    has_hooks,
    is_addition,
    is_fixed_norm,
    is_max_pool,
    keeps_signs,
    pool_settings,
)
from stompp_kernels.conversion.packing.strided_unpack import move_strides_to_unpacking
from stompp_kernels.conversion.packing.twins import (
    binary_weight_twin,
    has_binary_weight,
    is_packable,
    own_affine,
    packed_twin,
)
from stompp_kernels.nn import (
    BinaryConv2d,
    BinaryLayer,
    BinaryLinear,
    MaxPoolSigns,
    PackBatchNorm,
    PackSigns,
    PrepackedConv2d,
    ProgressiveActivation,
    UnpackSigns,
)
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import Affine, AffineSigns
from stompp_kernels.ops.checks import pair
from stompp_kernels.ops.reference import max_pool2d_out_size

_NOTHING_IN_EVAL = (nn.Identity, nn.Dropout, nn.Dropout2d)


def pack_graph(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The packed network of a model in eval mode and its traced graph, both of which it may use up."""
    names = rename_for_python(model, graph)
    packed = _Packer(model, graph).run()
    for layer in packed.modules():
        if isinstance(layer, PackedLayer):
            layer.replaces = tuple(names.get(name, name) for name in layer.replaces)
    for node in packed.graph.nodes:
        if "signs_of" in node.meta:
            name, images = node.meta["signs_of"]
            node.meta["signs_of"] = names.get(name, name), images
    return packed


@dataclass(frozen=True)
class _Signs:
    """A float node whose values are +-1: its words are NHWC or [..., K], and a sample's shape is known."""

    images: bool
    shape: tuple[int, ...]


@dataclass
class _Chain:
    """layer -> per-channel float modules (-> + residual) -> what follows, none of it used elsewhere."""

    layer: fx.Node
    steps: list[fx.Node]  # in order of execution, the layer's node excluded
    residual: fx.Node | None = None


class _Packer:
    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.module = fx.GraphModule(model, graph)
        self.graph = self.module.graph
        self.modules = dict(self.module.named_modules())
        # (float node, whether its words are NHWC) -> node of its sign bits
        self.bits: dict[tuple[fx.Node, bool], fx.Node] = {}
        self.signs: dict[fx.Node, _Signs] = {}

    def run(self) -> fx.GraphModule:
        for node in list(self.graph.nodes):
            module = self._module(node)
            if isinstance(module, _NOTHING_IN_EVAL) and not has_hooks(module):
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)
            elif node.op == "call_method" and node.target == "view":
                node.target = "reshape"  # packed convolutions write channels_last, of which not every view exists
        for node in list(self.graph.nodes):
            self._pack_node(node)
        for node in self.signs:
            self._unpack_for_float_users(node)
        self.graph.eliminate_dead_code()
        for node in list(self.graph.nodes):
            if "layer" in node.meta:
                self._absorb(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        pack_float_convs(self.module)
        move_strides_to_unpacking(self.module)
        for name, module in list(self.module.named_modules()):
            if type(module) is nn.Conv2d and not has_hooks(module):
                parent, _, own = name.rpartition(".")
                setattr(self.module.get_submodule(parent), own, PrepackedConv2d.of(module))
        self.module.recompile()
        return self.module.eval().requires_grad_(False)

    def _pack_node(self, node: fx.Node) -> None:
        module = self._module(node)
        if isinstance(module, BinaryLayer) and is_packable(module):
            self._pack_layer(node, module)
        elif isinstance(module, BinaryLayer) and has_binary_weight(module):
            self._pack_weight(node, module)
        elif isinstance(module, ProgressiveActivation) and module.committed:
            self._pack_activation(node, module)
        elif is_max_pool(node, module) and node.args[0] in self.signs:
            self._pool_signs(node, module)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _add(self, before: fx.Node, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        """A call of a new submodule, placed before a node."""
        name = fresh_name(self.module, name)
        self.module.add_submodule(name, module)
        self.modules[name] = module
        with self.graph.inserting_before(before):
            return self.graph.call_module(name, args)

    # Signs

    def _bits_of(self, value: fx.Node, user: fx.Node, images: bool) -> fx.Node:
        """The sign bits of a float node, packed before `user` unless they exist already."""
        while keeps_signs(self._module(value)) and isinstance(value.args[0], fx.Node):
            value = value.args[0]
        if (value, images) not in self.bits:
            self.bits[value, images] = self._add(user, f"{flat_name(user)}_pack", PackSigns(images), value)
        return self.bits[value, images]

    def _normalized_bits(self, value: fx.Node, user: fx.Node, images: bool) -> fx.Node | None:
        """The sign bits of a BatchNorm's output, from its input in one pass; None if it is no such node."""
        norm = self._module(value)
        if not is_fixed_norm(norm) or list(value.users) != [user]:
            return None
        # [B, C, L] has its channels in the middle.
        if images != isinstance(norm, nn.BatchNorm2d) or (not images and len(self.signs[user].shape) != 1):
            return None
        shape = (1, norm.num_features, 1, 1) if images else (1, norm.num_features)

        def function(x: Tensor) -> Tensor:
            return norm(x.reshape(shape)).reshape(-1)

        packer = PackBatchNorm(norm.num_features, images)
        with torch.no_grad():
            packer.low, packer.high = fold_limits(function, norm.num_features, norm.running_mean.device)
        return self._add(user, f"{flat_name(user)}_pack", packer, value.args[0])

    def _pack_activation(self, node: fx.Node, activation: ProgressiveActivation) -> None:
        assert activation.mask_shape is not None
        linear = any(isinstance(self._module(user), BinaryLinear) for user in node.users)
        images = len(activation.mask_shape) == 3 and not linear
        chain = self._match(node, activation)
        if chain is None:
            # Whatever feeds it is float: sign and pack in one pass.
            self.signs[node] = _Signs(images, activation.mask_shape)
            value = node.args[0]
            words = self._normalized_bits(value, node, images) or self._bits_of(value, node, images)
        else:
            layer = chain.layer.meta["layer"]
            images = isinstance(layer, BinaryConv2d)
            self.signs[node] = _Signs(images, activation.mask_shape)
            words = self._threshold(chain, node, layer)
        words.meta["signs_of"] = str(node.target), images
        self._note_pixels(words, node)
        self.bits[node, images] = words

    def _pool_signs(self, node: fx.Node, module: nn.Module | None) -> None:
        source = node.args[0]
        signs = self.signs[source]
        settings = pool_settings(node, module)
        if not signs.images or settings is None or (settings["dilation"] != 1 and settings["padding"] != 0):
            return
        pooler = MaxPoolSigns(**settings)
        sizes = zip(
            signs.shape[1:],
            pair("kernel_size", settings["kernel_size"], 1),
            pair("stride", settings["stride"], 1),
            pair("padding", settings["padding"], 0),
            pair("dilation", settings["dilation"], 1),
            strict=True,
        )
        pixels = tuple(max_pool2d_out_size(*size, settings["ceil_mode"]) for size in sizes)
        self.signs[node] = _Signs(True, (signs.shape[0], *pixels))
        words = self.bits[node, True] = self._add(node, f"{flat_name(node)}_signs", pooler, self.bits[source, True])
        self._note_pixels(words, node)

    def _note_pixels(self, to: fx.Node, signs_of: fx.Node) -> None:
        """Keeps height and width of signs for float_convs.py."""
        signs = self.signs[signs_of]
        if signs.images:
            to.meta["pixels"] = signs.shape[1], signs.shape[2]

    def _unpack_for_float_users(self, node: fx.Node) -> None:
        signs = self.signs[node]
        words = self.bits[node, signs.images]
        users = [user for user in node.users if user is not words]
        if users:
            channels = signs.shape[0 if signs.images else -1]
            floats = self._add(node, f"{flat_name(node)}_unpack", UnpackSigns(channels, signs.images), words)
            self._note_pixels(floats, node)
            node.replace_all_uses_with(floats, delete_user_cb=lambda user: user is not words)

    # Layers

    def _pack_layer(self, node: fx.Node, layer: BinaryLayer) -> None:
        """A committed layer reads bits and writes floats; what follows may yet change what it writes."""
        # An activation of the layer's own divides by a positive scale at most: the signs are the input's.
        words = self._bits_of(node.args[0], node, isinstance(layer, BinaryConv2d))
        name = str(node.target)
        replacement = self._add(node, f"{name}_packed", packed_twin(layer, own_affine(layer), (name,)), words)
        replacement.meta.update(layer=layer, name=name)
        node.replace_all_uses_with(replacement)
        self.graph.erase_node(node)

    def _pack_weight(self, node: fx.Node, layer: BinaryLayer) -> None:
        """A layer with committed weights on floats; BatchNorms behind it become its scale and bias, to rounding."""
        chain, end = self._follow(_Chain(node, []), node, layer, shortcuts=False)
        affine = self._affine(chain, layer)
        name, replaces = self._replaced(chain)
        value = node.args[0]
        assert isinstance(value, fx.Node)
        twin = self._add(end, f"{name}_binary_weight", binary_weight_twin(layer, affine, replaces), value)
        end.replace_all_uses_with(twin)

    def _match(self, node: fx.Node, activation: ProgressiveActivation) -> _Chain | None:
        """The chain that ends in this committed activation and holds nothing but integers and their BatchNorms."""
        steps: list[fx.Node] = []
        residual = None
        current, user = node.args[0], node
        while isinstance(current, fx.Node) and list(current.users) == [user]:
            if "layer" in current.meta:
                chain = _Chain(current, steps[::-1], residual)
                return chain if self._is_per_output(chain, activation) else None
            steps.append(current)
            if is_fixed_norm(self._module(current)):
                current, user = current.args[0], current
            elif residual is None and is_addition(current):
                sides = self._sides(current, activation)
                if sides is None:
                    return None
                user, (current, residual) = current, sides
            else:
                return None
        return None

    def _is_per_output(self, chain: _Chain, activation: ProgressiveActivation) -> bool:
        """Whether the chain's channels are the layer's outputs, and its residual's words are in their order."""
        images = isinstance(chain.layer.meta["layer"], BinaryConv2d)
        if chain.residual is not None and (chain.residual, images) not in self.bits:
            return False
        assert activation.mask_shape is not None
        # BatchNorm's channels are dimension 1, a linear layer's outputs the last.
        norms = any(isinstance(self._module(step), BATCH_NORMS) for step in chain.steps)
        return images or len(activation.mask_shape) == 1 or not norms

    def _sides(self, addition: fx.Node, activation: ProgressiveActivation) -> tuple[fx.Node, fx.Node] | None:
        """(chain side, +-1 side of the same shape), or None."""
        for side, other in (addition.args, addition.args[::-1]):
            if isinstance(side, fx.Node) and other in self.signs and self.signs[other].shape == activation.mask_shape:
                return side, other
        return None

    def _threshold(self, chain: _Chain, node: fx.Node, layer: BinaryLayer) -> fx.Node:
        """Node of the words that a chain ends in."""
        arithmetic = self._arithmetic(chain, layer)
        images = isinstance(layer, BinaryConv2d)

        def function(acc: Tensor, residual: float | None) -> Tensor:
            return arithmetic(acc[None], residual)[0]

        K, channels = layer.weight[0].numel(), layer.weight.shape[0]
        with torch.no_grad():
            epilogue = fold_threshold(function, K, channels, chain.residual is not None, layer.weight.device)
        args = [chain.layer.args[0]]
        if chain.residual is not None:
            args.append(self.bits[chain.residual, images])
        name, replaces = self._replaced(chain)
        return self._add(node, f"{name}_fused", packed_twin(layer, epilogue, (*replaces, str(node.target))), *args)

    def _replaced(self, chain: _Chain) -> tuple[str, tuple[str, ...]]:
        """Name of a chain's layer, and the modules whose work the layer's twin does."""
        name = chain.layer.meta.get("name", str(chain.layer.target))
        return name, (name, *(str(step.target) for step in chain.steps if step.op == "call_module"))

    def _arithmetic(self, chain: _Chain, layer: BinaryLayer) -> Callable[..., Tensor]:
        """Runs the layer's scales and the chain's own modules on float32 integers [n, channels]."""
        scale = own_affine(layer)
        images = isinstance(layer, BinaryConv2d)

        def function(acc: Tensor, residual: float | None = None) -> Tensor:
            y = acc * scale.scale
            value = y + scale.bias
            for step in chain.steps:
                module = self._module(step)
                if module is None:
                    value = value + residual
                else:
                    value = module(value[:, :, None, None]).flatten(1) if images else module(value)
            return value

        return function

    # Floats behind a layer

    def _affine(self, chain: _Chain, layer: BinaryLayer) -> Affine:
        """The layer's own scales and bias, and the chain's BatchNorms."""
        if not chain.steps:
            return own_affine(layer)
        with torch.no_grad():
            return fold_affine(self._arithmetic(chain, layer), layer.weight[0].numel(), layer.weight.device)

    def _absorb(self, node: fx.Node) -> None:
        """BatchNorms behind a layer that writes floats, a shortcut, and the packing of the result become its own."""
        layer = node.meta["layer"]
        images = isinstance(layer, BinaryConv2d)
        chain, end = self._follow(_Chain(node, []), node, layer, shortcuts=True)
        packers = [user for user in end.users if self._packs_signs(user, images)]
        if end is node and not packers:
            return
        floats = len(end.users) > len(packers)
        affine = self._affine(chain, layer)
        residual, own = self._residual_of(chain, affine.fused, images)
        epilogue: Affine | AffineSigns = replace(affine, **own)
        if packers:
            epilogue = AffineSigns(affine.scale, affine.bias, fused=affine.fused, floats=floats, **own)
        name, replaces = self._replaced(chain)
        replaces = (*replaces, *(packer.meta["signs_of"][0] for packer in packers if "signs_of" in packer.meta))
        args = [node.args[0], *([] if residual is None else [residual])]
        twin = self._add(end, f"{name}_affine", packed_twin(layer, epilogue, replaces), *args)
        with self.graph.inserting_before(end):
            both = bool(packers) and floats
            words = self.graph.call_function(operator.getitem, (twin, 1)) if both else twin
            values = self.graph.call_function(operator.getitem, (twin, 0)) if both else twin
        for packer in packers:
            words.meta.update(packer.meta)
            packer.replace_all_uses_with(words)
            self.graph.erase_node(packer)
        end.replace_all_uses_with(values)

    def _residual_of(self, chain: _Chain, fused: bool, images: bool) -> tuple[fx.Node | None, dict[str, Tensor]]:
        """What is added, and the scale and bias of a BatchNorm that stood before it alone, as a downsample's does."""
        residual = chain.residual
        norm = None if residual is None else self._module(residual)
        if residual is None or not images or not isinstance(norm, nn.BatchNorm2d) or len(residual.users) > 1:
            return residual, {}
        source = residual.args[0]
        folded = fold_norm(norm, fused) if is_fixed_norm(norm) else None
        if folded is None or not isinstance(source, fx.Node):
            return residual, {}
        return source, {"residual_scale": folded[0], "residual_bias": folded[1]}

    def _packs_signs(self, node: fx.Node, images: bool) -> bool:
        module = self._module(node)
        return isinstance(module, PackSigns) and module.images == images

    def _follow(self, chain: _Chain, end: fx.Node, layer: BinaryLayer, shortcuts: bool) -> tuple[_Chain, fx.Node]:
        """Goes on from a layer as far as its twin can do the work: through BatchNorms and, if it can, one addition."""
        while chain.residual is None and len(end.users) == 1:
            (user,) = end.users
            if is_fixed_norm(self._module(user)) and self._norm_is_per_output(layer):
                chain.steps.append(user)
            elif shortcuts and is_addition(user) and self._shortcut(user, end) is not None:
                chain.residual = self._shortcut(user, end)
            else:
                break
            end = user
        return chain, end

    @staticmethod
    def _norm_is_per_output(layer: BinaryLayer) -> bool:
        """BatchNorm's channels are dimension 1, a linear layer's outputs the last."""
        if isinstance(layer, BinaryConv2d):
            return True
        shape = None if layer.activation is None else layer.activation.mask_shape
        return shape is not None and len(shape) == 1

    @staticmethod
    def _shortcut(addition: fx.Node, side: fx.Node) -> fx.Node | None:
        """The other side of an addition, if it is a node that the addition leaves as it is."""
        other = addition.args[1] if addition.args[0] is side else addition.args[0]
        in_place = addition.target in (operator.iadd, "add_")
        if not isinstance(other, fx.Node) or other is side or (in_place and addition.args[0] is other):
            return None
        return other

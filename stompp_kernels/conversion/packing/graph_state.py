"""What is known of a traced network's nodes while its committed layers are rewritten to run on bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.nodes import fresh_name
from stompp_kernels.nn import BinaryLayer

Pixels: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Signs:
    """A float node whose values are +-1.

    Attributes:
        images: its words are NHWC, not [..., K].
        shape: of one sample, channels first for images.
    """

    images: bool
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """The number of channels or features."""
        return self.shape[0 if self.images else -1]


@dataclass(frozen=True)
class LayerCall:
    """The committed layer that a node's packed twin stands for, and the layer's qualified name."""

    layer: BinaryLayer
    name: str


class GraphState:
    """A network whose graph is being rewritten.

    Attributes:
        module: the network; its submodules grow by the packed ones.
        graph: the network's graph.
        bits: the node of the sign bits of a float node, by that node and whether the words are NHWC.
        signs: the float nodes whose values are +-1.
        layers: the nodes that call a packed twin which still writes floats.
        pixels: height and width of what a node gives, where that is known.
        parts: the channels of what a node concatenates, where packed convolutions give it.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.module = fx.GraphModule(model, graph)
        self.graph = self.module.graph
        self.bits: dict[tuple[fx.Node, bool], fx.Node] = {}
        self.signs: dict[fx.Node, Signs] = {}
        self.layers: dict[fx.Node, LayerCall] = {}
        self.pixels: dict[fx.Node, Pixels] = {}
        self.parts: dict[fx.Node, list[int]] = {}
        self._modules = dict(self.module.named_modules())

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None where it calls none."""
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def put(self, name: str, module: nn.Module) -> None:
        """Lets a module take another one's place, or a new one."""
        self.module.set_submodule(name, module)
        self._modules[name] = module

    def calls_of(self, node: fx.Node) -> int:
        """The number of nodes that call the module that a node calls."""
        return sum(other.op == "call_module" and other.target == node.target for other in self.graph.nodes)

    def add(self, before: fx.Node, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        """A call of a new submodule, placed before a node."""
        name = fresh_name(self.module, name)
        self.module.add_submodule(name, module)
        self._modules[name] = module
        with self.graph.inserting_before(before):
            return self.graph.call_module(name, args)

    def add_constant(self, name: str, value: Tensor) -> fx.Node:
        """A read of a new buffer, placed where the graph inserts nodes now."""
        while hasattr(self.module, name):
            name += "_"
        self.module.register_buffer(name, value)
        return self.graph.get_attr(name)

    def note_words(self, node: fx.Node, signs: Signs, words: fx.Node) -> None:
        """Notes that a float node's values are +-1, and which node writes them as words."""
        self.signs[node] = signs
        self.bits[node, signs.images] = words
        self.note_pixels(words, signs)

    def note_pixels(self, node: fx.Node, signs: Signs) -> None:
        """Notes height and width of a node that gives these signs as words or floats."""
        if signs.images:
            self.pixels[node] = signs.shape[1], signs.shape[2]

    def take_notes(self, node: fx.Node, of: fx.Node) -> None:
        """Notes of a node what is noted of another one, whose place it takes."""
        node.meta.update(of.meta)
        if of in self.pixels:
            self.pixels[node] = self.pixels[of]

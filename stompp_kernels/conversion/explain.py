"""explain: what runs where in a packed network, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from stompp_kernels.native import active_implementation
from stompp_kernels.nn import PackBatchNorm, PackedConv2d, PackedLinear, PackSigns, UnpackSigns
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.table import table


@dataclass(frozen=True)
class LayerExplanation:
    """One module call of a packed network.

    Attributes:
        name: of the submodule.
        kernel: the op that runs, with its epilogue; for float modules their type.
        implementation: the instruction set of the kernel, or "torch".
        nbytes: bytes of weights and constants in memory.
        float_nbytes: bytes of the same in fp32.
        reason: why it runs as it does.
    """

    name: str
    kernel: str
    implementation: str
    nbytes: int
    float_nbytes: int
    reason: str


@dataclass(frozen=True)
class Explanation:
    """One row per module call, in order of execution; ``print`` shows a table."""

    rows: tuple[LayerExplanation, ...]

    def __str__(self) -> str:
        cells = [(r.name, r.kernel, r.implementation, r.nbytes, r.float_nbytes, r.reason) for r in self.rows]
        return table(("layer", "kernel", "implementation", "bytes", "fp32 bytes", "why"), cells)


def explain(packed: fx.GraphModule) -> Explanation:
    """A table of a packed network's layers: kernel, implementation, bytes, and why a layer stayed in float.

    Args:
        packed: made by ``sk.convert`` or ``sk.load_packed``.
    """
    if not isinstance(packed, fx.GraphModule):
        raise TypeError(f"packed must be a network made by sk.convert, got {type(packed).__name__}")
    modules = dict(packed.named_modules())
    calls = [node for node in packed.graph.nodes if node.op == "call_module"]
    return Explanation(tuple(_explain(str(node.target), modules[str(node.target)]) for node in calls))


def _explain(name: str, module: nn.Module) -> LayerExplanation:
    if isinstance(module, PackedLayer):
        op = "bconv2d" if isinstance(module, PackedConv2d) else "bgemm"
        assert isinstance(module, (PackedConv2d, PackedLinear))
        if module.writes_bits:
            residual = module.thresholds.shape[0] == 2
            kernel = f"{op} + threshold"
            reason = "BatchNorm" + (", +-1 shortcut" if residual else "") + " and sign folded to integer thresholds"
        else:
            kernel, reason = f"{op} + affine", "what comes next needs floats"
        float_nbytes = 4 * module.weight.shape[0] * module.weight.unpacked_row_numel
        return LayerExplanation(name, kernel, active_implementation(), module.nbytes, float_nbytes, reason)
    if isinstance(module, PackSigns):
        return LayerExplanation(name, "pack_signs", active_implementation(), 0, 0, "float input of a binary layer")
    if isinstance(module, PackBatchNorm):
        nbytes = sum(t.numel() * t.element_size() for t in module.buffers())
        reason = "BatchNorm and sign of a float input folded to one comparison"
        return LayerExplanation(name, "pack_outside", active_implementation(), nbytes, 2 * nbytes, reason)
    if isinstance(module, UnpackSigns):
        return LayerExplanation(name, "unpack_signs", active_implementation(), 0, 0, "a float module reads these signs")
    nbytes = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        reason = "kept in float by prepare"
    else:
        reason = "stands next to a float layer"
    return LayerExplanation(name, type(module).__name__, "torch", nbytes, nbytes, reason)

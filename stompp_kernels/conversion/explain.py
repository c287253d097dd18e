"""explain: what runs where in a packed network, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from stompp_kernels.native import implementation_of
from stompp_kernels.nn import MaxPoolSigns, PackBatchNorm, PackedConv2d, PackedLinear, PackSigns, UnpackSigns
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.table import table


@dataclass(frozen=True)
class LayerExplanation:
    """One module call of a packed network.

    Attributes:
        name: of the submodule.
        kernel: the op that runs, with its epilogue; for float modules their type.
        implementation: what runs the kernel: an instruction set, "cuda", "triton", "reference" or "torch".
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
    devices = [module.weight.data.device for module in modules.values() if isinstance(module, PackedLayer)]
    device = devices[0] if devices else torch.device("cpu")
    return Explanation(tuple(_explain(str(node.target), modules[str(node.target)], device) for node in calls))


def _explain(name: str, module: nn.Module, device: torch.device) -> LayerExplanation:
    def row(op: str, epilogue: str, nbytes: int, float_nbytes: int, reason: str) -> LayerExplanation:
        return LayerExplanation(name, op + epilogue, implementation_of(op, device), nbytes, float_nbytes, reason)

    if isinstance(module, PackedLayer):
        op = "bconv2d" if isinstance(module, PackedConv2d) else "bgemm"
        assert isinstance(module, (PackedConv2d, PackedLinear))
        if module.has_thresholds:
            residual = module.thresholds.shape[0] == 2
            epilogue = " + threshold"
            reason = "BatchNorm" + (", +-1 shortcut" if residual else "") + " and sign folded to integer thresholds"
        else:
            epilogue = " + affine" + ("" if module.writes == "floats" else " signs")
            reason = {
                "floats": "what comes next needs floats",
                "bits": "BatchNorm and float shortcut folded, of which only the signs are read",
                "both": "BatchNorm and float shortcut folded, read as signs and as floats",
            }[module.writes]
        float_nbytes = 4 * module.weight.shape[0] * module.weight.unpacked_row_numel
        return row(op, epilogue, module.nbytes, float_nbytes, reason)
    if isinstance(module, MaxPoolSigns):
        return row("max_pool2d_signs", "", 0, 0, "the largest of signs is their AND")
    if isinstance(module, PackSigns):
        return row("pack_signs", "", 0, 0, "float input of a binary layer")
    if isinstance(module, PackBatchNorm):
        nbytes = sum(t.numel() * t.element_size() for t in module.buffers())
        return row(
            "pack_outside", "", nbytes, 2 * nbytes, "BatchNorm and sign of a float input folded to one comparison"
        )
    if isinstance(module, UnpackSigns):
        return row("unpack_signs", "", 0, 0, "a float module reads these signs")
    nbytes = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        reason = "kept in float by prepare"
    else:
        reason = "stands next to a float layer"
    return LayerExplanation(name, type(module).__name__, "torch", nbytes, nbytes, reason)

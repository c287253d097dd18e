"""What a packed network runs on a GPU, without one: tensors without data go through it, and their operators are listed.

That happens in a process of its own, where such tensors get the ops of GPUs.
"""

import json

import pytest
from processes import run_python

pytest.importorskip("triton")

ON_A_GPU = """
import json, sys
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stompp_kernels as sk
import stompp_kernels.ops.triton
from models_for_tests import committed, float_convs_of

chosen = sk.ops.schemas.kernels_for

def kernels_for(x):
    return torch.ops.stompp_triton if x.device.type == "meta" else chosen(x)

for module in list(sys.modules.values()):
    if getattr(module, "kernels_for", None) is chosen:
        module.kernels_for = kernels_for

class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.relu1 = nn.Conv2d(3, 40, 3, 2, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv, self.norm2, self.relu2 = nn.Conv2d(40, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU()
        self.head = nn.Conv2d(64, 4, 1)

    def forward(self, x):
        x = self.pool(self.relu1(self.norm(self.stem(x))))
        return self.head(self.relu2(self.norm2(self.conv(x)))).mean((2, 3))

def pooled():
    model, _ = sk.prepare(Pooled(), torch.randn(2, 3, 20, 18))
    sk.StoMPP(model, total_steps=1, regime="vanilla_ste")
    return model.eval(), torch.randn(2, 3, 20, 18)

class Operators(TorchDispatchMode):
    VIEWS = ("permute", "view", "detach", "slice", "flatten", "alias", "expand", "transpose", "reshape", "t")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removesuffix(".default")
        if name.partition(".")[2].partition(".")[0] not in self.VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))

def of(name):
    "A packed network, and an input."
    model, x = pooled() if name == "pooled" else committed(name)
    with float_convs_of(torch_s=False):
        return sk.convert(model).to("meta"), x[:2].to("meta")

"""


def on_a_gpu(code):
    done = run_python(ON_A_GPU + code)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


RUN = """
packed, x = of("pooled")
with torch.no_grad():
    packed(x)  # which brings weights into torch's order
    with Operators() as operators:
        packed(x)
print(json.dumps(operators.names))
"""


@pytest.mark.slow
def test_layers_are_one_kernel_each_but_for_torchs_convolution():
    assert on_a_gpu(RUN) == [
        "aten.convolution",
        "stompp_triton.pack_outside",
        "stompp_triton.max_pool2d_signs",
        "stompp.bconv2d_affine",
        "aten.convolution",
        "aten.addcmul",
        "aten.mean.dim",
    ]


EXPORT = """
from stompp_kernels import cuda_library
from stompp_kernels.ops.triton import OPS

found = set()
for name in ("pooled", "residual", "bireal", "mlp"):
    packed, x = of(name)
    with torch.no_grad():
        program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        space, _, op = str(node.target).removesuffix(".default").partition(".")
        if space.startswith("stompp"):
            known = OPS if space == "stompp_triton" else cuda_library.OPS
            assert op in known, node.target
            found.add(str(node.target))
print(json.dumps(sorted(found)))
"""


@pytest.mark.slow
def test_exported_programs_take_any_batch_and_need_no_op_that_python_alone_has():
    """The ops of stompp_triton become kernels of a package; those of stompp are in the library for GPUs."""
    expected = {"stompp.bgemm_threshold.default", "stompp_triton.max_pool2d_signs.default"}
    assert expected < set(on_a_gpu(EXPORT))

"""sk.capture_packed without a GPU: what it refuses, and graphs of a stand-in that runs what it recorded again."""

import re

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stompp_kernels as sk
from stompp_kernels.conversion import cuda_graph


class Graph:
    """A CUDA graph on the CPU: operators with the tensors that they wrote to."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for function, args, kwargs, written in self.calls:
            results = function(*args, **kwargs)
            for result, to in zip(*map(torch.utils._pytree.tree_leaves, (results, written)), strict=True):
                if isinstance(to, torch.Tensor) and result.data_ptr() != to.data_ptr():
                    to.copy_(result)


class Capture(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, result))
        return result


class Stream:
    def wait_stream(self, other):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def on_the_cpu(monkeypatch):
    """torch.cuda's streams and graphs as stand-ins."""
    for name, stand_in in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: stream,
        "CUDAGraph": Graph,
        "graph": Capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(cuda_graph, "_device_of", lambda packed: torch.device("cpu"))


def packed_network():
    torch.manual_seed(0)
    model, _ = sk.prepare(sk.models.SmallResNet(image_size=8, widths=(32, 32), strides=(1, 2)), torch.randn(2, 1, 8, 8))
    sk.StoMPP(model, total_steps=1, regime="vanilla_ste")
    return sk.convert(model)


class TwoInputs(nn.Module):
    """A packed layer, a tensor by name and a constant; two results."""

    def __init__(self):
        super().__init__()
        self.packed = packed_network()

    def forward(self, x, *, shift, times=2):
        y = self.packed(x)
        return {"sum": y * times + shift, "parts": [y]}


def test_a_captured_network_computes_what_the_network_does(on_the_cpu):
    packed = packed_network()
    run = sk.capture_packed(packed, torch.randn(3, 1, 8, 8))
    first, second = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    y, z = run(first), run(second)
    assert torch.equal(y, packed(first)), "results stay as they are after the next call"
    assert torch.equal(z, packed(second))
    assert not torch.equal(y, z)
    with pytest.raises(RuntimeError, match="input 0 requires a gradient, and a CUDA graph passes none"):
        run(first.requires_grad_())
    with torch.no_grad():
        assert torch.equal(run(first), y)


def test_inputs_by_name_constants_and_several_results(on_the_cpu):
    network = TwoInputs()
    run = sk.capture_packed(network, {"x": torch.randn(2, 1, 8, 8), "shift": torch.zeros(10), "times": 3})
    x, shift = torch.randn(2, 1, 8, 8), torch.randn(10)
    found, expected = run(x=x, shift=shift, times=3), network(x, shift=shift, times=3)
    assert torch.equal(found["sum"], expected["sum"])
    assert torch.equal(found["parts"][0], expected["parts"][0])
    with pytest.raises(ValueError, match="input 'times' must be 3, as it was captured, got 4"):
        run(x=x, shift=shift, times=4)
    with pytest.raises(TypeError, match="input 'x', input 'shift', input 'times'; got input 0"):
        run(x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.randn(4, 1, 8, 8), "input 0 must have the shape that was captured, [3, 1, 8, 8], got [4, 1, 8, 8]"),
        (torch.randn(3, 1, 8, 8).double(), "the dtype that was captured, torch.float32, got torch.float64"),
        (torch.empty(3, 1, 8, 8, device="meta"), "the device that was captured, cpu, got meta"),
        (1.0, "input 0 must be a tensor, as it was captured, got float"),
    ],
)
def test_other_inputs_are_refused(wrong, message, on_the_cpu):
    run = sk.capture_packed(packed_network(), torch.randn(3, 1, 8, 8))
    with pytest.raises(ValueError, match=re.escape(message)):
        run(wrong)
    with pytest.raises(TypeError, match="got no inputs"):
        run()


def test_what_no_graph_can_hold_is_said(on_the_cpu):
    class Reads(TwoInputs):
        def forward(self, x):
            y = self.packed(x)
            return y if y.sum().item() > 0 else -y

    with pytest.raises(RuntimeError, match="a CUDA graph cannot hold this network: operation not permitted"):
        sk.capture_packed(Reads(), torch.randn(2, 1, 8, 8))


def test_networks_and_inputs_elsewhere_are_refused(monkeypatch):
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(TypeError, match=r"packed must be a network made by sk\.convert, got Linear"):
        sk.capture_packed(nn.Linear(2, 2), x)
    packed = packed_network()
    with pytest.raises(ValueError, match=r'it is on cpu: move it with packed\.to\("cuda"\)'):
        sk.capture_packed(packed, x)
    packed.register_buffer("elsewhere", torch.empty(1, device="meta"))
    with pytest.raises(ValueError, match="it is on cpu and meta"):
        sk.capture_packed(packed, x)
    monkeypatch.setattr(cuda_graph, "_device_of", lambda packed: torch.device("cuda", 0))
    with pytest.raises(ValueError, match="example_inputs must be on cuda:0 as the network is, and input 0 is on cpu"):
        sk.capture_packed(packed, x)

"""Conversion changes nothing outside the model that it converts: other threads go on as if there were none."""

import functools
import math
import threading

import pytest
import torch
from models_for_tests import committed
from torch import fx, nn
from torch.nn import functional as F

import stompp_kernels as sk
from stompp_kernels.conversion.packing.trace import PackedTracer
from stompp_kernels.nn.functional import packed_path_allowed


def square_root(x):
    return math.sqrt(x)


def scaled(x):
    return x / square_root(x.shape[1])


@fx.wrap
def halved(x):
    """Branches on values, so that only a call of it can stand in a graph."""
    return x / 2 if float(x.sum()) > 0 else x / 4


fx.wrap("len")


class Probe(nn.Module):
    """Calls what torch.fx records by patches, and notes what the process sees meanwhile."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.act = nn.ReLU()
        self.seen = []
        self.look = functools.partial(process_state)  # a function found here would call substitutes

    def forward(self, x):
        self.seen.append(self.look())
        return self.act(halved(scaled(x)) + self.weight.sum() + len(x))


def process_state():
    flag = getattr(fx._symbolic_trace, "_is_fx_tracing_flag", False)  # of the process until torch 2.13
    return nn.Module.__call__, nn.Module.__getattr__, nn.ReLU.__call__, math.sqrt, F.relu, halved, len, flag


def test_a_trace_leaves_the_process_as_it_is():
    model, x = Probe(), torch.randn(3, 4)
    before = process_state()
    graph = PackedTracer().trace(model)
    assert model.seen == [before] == [process_state()]
    assert type(model) is Probe
    assert type(model.act) is nn.ReLU
    called = [node.target for node in graph.nodes if node.op in ("call_function", "call_module")]
    assert math.sqrt in called
    assert halved in called
    assert "act" in called
    assert [node.target for node in graph.nodes if node.op == "get_attr"] == ["weight"]
    traced = fx.GraphModule(model, graph)
    for factor in (1, -1):
        assert torch.equal(traced(factor * x), model(factor * x))


def test_a_trace_that_fails_leaves_the_model_as_it_is():
    class Branches(Probe):
        def forward(self, x):
            return self.act(x) if x.sum() > 0 else x

    model = Branches()
    with pytest.raises(fx.proxy.TraceError):
        PackedTracer().trace(model)
    assert type(model) is Branches
    assert type(model.act) is nn.ReLU
    assert float(model(torch.ones(1))) == 1


def test_a_forward_of_the_object_itself_is_refused():
    model = nn.Sequential(nn.ReLU())
    model.forward = lambda x: -x
    with pytest.raises(fx.proxy.TraceError, match="forward was replaced"):
        PackedTracer().trace(model)


def test_conversions_beside_threads_that_serve():
    """20 conversions beside 8 threads: no call fails, and none gives another result."""
    model, x = committed("mlp", 3)
    packed, other = sk.convert(model), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    layer, z = next(m for m in model.modules() if isinstance(m, sk.nn.BinaryLayer)), torch.randn(2, 8)
    calls = [lambda: packed(x), lambda: other(z), lambda: model(x)]
    wrong, counts, stop = [], [0] * 8, threading.Event()

    with torch.no_grad():
        expected = [call() for call in calls]

    def serve(thread):
        with torch.no_grad():
            while not stop.wait(0.001):  # leaves the interpreter to the conversions now and then
                try:
                    for call, result in zip(calls, expected, strict=True):
                        if not torch.equal(call(), result):
                            wrong.append("another result")
                    if not packed_path_allowed(x) or layer.training or nn.Module.__call__ is not original:
                        wrong.append("the process or the model was changed")
                except Exception as error:
                    wrong.append(repr(error))
                counts[thread] += 1

    original = nn.Module.__call__
    threads = [threading.Thread(target=serve, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(20):
            sk.convert(model, verify=x if turn % 5 == 0 else None, by_layer=turn % 5 == 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, f"{len(wrong)} of {sum(counts)}: {wrong[0]}"
    assert min(counts) > 0


def test_float_simulation_holds_for_its_thread_and_its_backward():
    x, seen = torch.randn(2, 3), {}

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen["backward"] = packed_path_allowed(grad)
            return grad

    def look():
        seen["other thread"] = packed_path_allowed(x)

    with sk.float_simulation():
        with sk.float_simulation():
            assert not packed_path_allowed(x)
        assert not packed_path_allowed(x)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        Note.apply(x.clone().requires_grad_()).sum().backward()
    assert packed_path_allowed(x)
    assert seen == {"other thread": True, "backward": False}


def test_compiled_code_follows_float_simulation():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x + 1 if packed_path_allowed(x) else x - 1, backend=backend, fullgraph=True)
    x = torch.zeros(1)
    assert float(compiled(x)) == 1
    with sk.float_simulation():
        assert float(compiled(x)) == -1
        with sk.float_simulation():
            assert float(compiled(x)) == -1
    assert float(compiled(x)) == 1
    assert len(calls) == 2

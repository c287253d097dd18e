"""Packed networks for tests of libstompp, and the comparison of what it computes with Python, value by value."""

import torch
from models_for_tests import seeded, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn.packed import PackedLayer

SMALL = {"width": 8, "image_size": 32, "widths": (40, 33)}
TRACED = [name for name in sk.models.list() if name not in ("bert", "binary_vit")]


def model_of(name, binarize):
    """A committed model of the registry, small, and two inputs for it; BatchNorm has the statistics of some inputs."""
    options = {key: value for key, value in SMALL.items() if key in sk.models.entry(name).options()}
    if name == "small_resnet":
        options = {"image_size": 8, "widths": (8, 8, 16, 16)}
    if name.startswith("mobilenet"):
        options["width"] = 0.25  # a factor, not a number of channels
    g = seeded(3)
    model = set_stage(sk.models.create(name, 10, binarize=binarize, **options), sk.nn.Stage.BINARY)
    x = sk.models.example_inputs(name, **options)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norm.weight.copy_(torch.rand(norm.num_features, generator=g) * 2 - 1)
                norm.bias.copy_(torch.randn(norm.num_features, generator=g))
                norm.momentum = 1.0
        model.train()(torch.randn((8, *x.shape[1:]), generator=g))
    return model.eval(), torch.randn((2, *x.shape[1:]), generator=g)


def saved_as_bytes(model, x, folder):
    path = folder / "network.safetensors"
    sk.save_packed(sk.convert(model), path, example_inputs=x)
    return path.read_bytes()


class Compared(torch.fx.Interpreter):
    """Runs a network in Python, and compares each packed layer with libstompp's, given what libstompp gave it."""

    def __init__(self, network, seen, close):
        super().__init__(network)
        self.seen, self.close, self.layers = seen, close, 0

    def run_node(self, node):
        result = super().run_node(node)
        theirs = result if isinstance(result, tuple) else (result,)
        mine = self.seen.get(node.name)
        if mine is None or node.op == "output":
            return result
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        is_packed = isinstance(module, PackedLayer)
        self.layers += is_packed
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape, node.name
            if not b.is_floating_point() or (is_packed and not isinstance(module, self.close)):
                assert bool(((a == b) | (a.isnan() & b.isnan())).all()), f"{node.name} differs"
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()), equal_nan=True)
        return tuple(mine) if isinstance(result, tuple) else mine[0]


def assert_same(library, data, x, path, implementation=None, threads=1, close=()):
    """Every value between layers is Python's: bits and packed layers exactly, floats and layers `close` within 1e-5."""
    seen = {}
    network = library.open(data, implementation)
    (result,) = network.run(
        x, threads=threads, observe=lambda v: seen.setdefault(v.name.decode(), []).append(v.tensor())
    )
    path.write_bytes(data)
    python = sk.load_packed(path)
    compared = Compared(python, seen, close)
    with torch.no_grad():
        compared.run(x)
    assert compared.layers > 0
    assert torch.equal(network.run(x)[0], result)
    return result

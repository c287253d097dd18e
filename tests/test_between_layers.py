"""What stands between packed layers: a ReLU becomes part of the layer before it, a channel shuffle one function."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bits, generator
from models_for_tests import randomize_norms, set_stage
from torch import nn

import stompp_kernels as sk
from stompp_kernels.nn import Stage
from stompp_kernels.nn.packed import PackedLayer

FOLDED = {
    "module": lambda net, y: net.relu(y),
    "in place": lambda net, y: net.relu_in_place(y),
    "F.relu": lambda net, y: F.relu(y),
    "torch.relu": lambda net, y: torch.relu(y),
    "method": lambda net, y: y.relu(),
    "shifted": lambda net, y: net.relu(y) + net.shift,
}
KEPT = {
    "shortcut": lambda net, y: net.relu(y + net.other(net.x)),
    "read twice": lambda net, y: net.relu(y) + 2 * y,
    "hooked": lambda net, y: net.hooked(y),
    "relu6": lambda net, y: F.relu6(y),
    "without bounds": lambda net, y: net.relu(y),
}


class Tail(nn.Module):
    """A binary layer whose floats a float layer reads behind BatchNorm and a ReLU."""

    def __init__(self, form, images=False):
        super().__init__()
        torch.manual_seed(0)
        layer, norm = (nn.Conv2d, nn.BatchNorm2d) if images else (nn.Linear, nn.BatchNorm1d)
        size = (1,) if images else ()
        self.form, self.first, self.act = form, layer(24, 40, *size), nn.ReLU()
        self.layer, self.norm = layer(40, 16, *size, bias=False), norm(16)
        self.relu, self.relu_in_place, self.hooked = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU()
        self.hooked.register_forward_hook(lambda module, inputs, y: y + 1)
        self.other, self.head = layer(24, 16, *size), layer(16, 3, *size)
        self.shift = nn.Parameter(torch.rand((16, 1, 1) if images else 16))

    def forward(self, x):
        self.x = x
        y = self.norm(self.layer(self.act(self.first(x))))
        return self.head({**FOLDED, **KEPT}[self.form](self, y))


def converted(net, x, **options):
    model, _ = sk.prepare(net, x, **options)
    model = set_stage(randomize_norms(model, generator(0)), Stage.BINARY).eval()
    infinite = net.form == "without bounds"
    if infinite:
        model.norm.weight.data[3] = 1e38  # of which the sums of a channel make infinities, where roundings differ
    return model, sk.convert(model, verify=None if infinite else x, compare_speed=False)


def relus_of(packed):
    relu = (F.relu, F.relu6, torch.relu, "relu")
    called = dict(packed.named_modules())
    return [n for n in packed.graph.nodes if n.target in relu or isinstance(called.get(str(n.target)), nn.ReLU)]


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("form", FOLDED)
def test_a_relu_behind_a_layer_is_part_of_it(form, images, g):
    x = torch.randn(3, 24, *((5, 4) if images else ()), generator=g)
    model, packed = converted(Tail(form, images), x, keep=("other",))
    assert relus_of(packed) == []
    (layer,) = (module for module in packed.modules() if isinstance(module, PackedLayer))
    assert not layer.rprelu[1].any()
    with torch.no_grad(), sk.float_simulation():
        assert_same_bits(packed(x), model(x))


def test_a_relu_behind_a_shortcut_of_signs_is_part_of_the_layer(g):
    x = torch.randn(2, 3, 16, 16, generator=g)
    model = sk.models.create("resnet20", num_classes=10, image_size=16)
    model, _ = sk.prepare(model, x)
    model = set_stage(randomize_norms(model, generator(0)), Stage.BINARY).eval()
    packed = sk.convert(model, verify=x, compare_speed=False)
    assert relus_of(packed) == []
    with torch.no_grad(), sk.float_simulation():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)  # pooled in another order


@pytest.mark.parametrize("form", KEPT)
def test_other_relus_stay(form, g):
    x = torch.randn(3, 24, generator=g)
    model, packed = converted(Tail(form), x, keep=("other",))
    assert len(relus_of(packed)) == 1
    if form != "without bounds":
        with torch.no_grad(), sk.float_simulation():
            assert_same_bits(packed(x), model(x))


class Shuffle(nn.Module):
    """Two grouped layers with a channel shuffle between them, in one of its spellings."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.form, self.stem, self.act = form, nn.Conv2d(3, 24, 1), nn.ReLU()
        self.first, self.norm = nn.Conv2d(24, 24, 3, padding=1, groups=3), nn.BatchNorm2d(24)
        self.second, self.head = nn.Conv2d(24, 24, 1, groups=3), nn.Conv2d(24, 3, 1)

    def forward(self, x):
        y = self.norm(self.first(self.act(self.stem(x)))) * torch.sigmoid(x[:, :1])
        return self.head(self.second(SPELLINGS[self.form](y)))


def torchvisions(y, groups=3):
    batch, channels, height, width = y.size()
    y = y.view(batch, groups, channels // groups, height, width)
    return torch.transpose(y, 1, 2).contiguous().view(batch, channels, height, width)


def by_shape(y):
    sizes = y.shape
    y = y.reshape((sizes[0], 3, sizes[1] // 3, sizes[2], sizes[3])).permute(0, 2, 1, 3, 4)
    return y.reshape(sizes[0], -1, sizes[2], sizes[3])


def by_method(y):
    B, C, H, W = y.size(0), y.size(1), y.size(2), y.size(3)
    return torch.reshape(torch.reshape(y, (B, 3, C // 3, H, W)).transpose(2, 1), (B, C, H, W))


def turned(y):
    """The height and width of the result are swapped: no shuffle of channels."""
    B, C, H, W = y.size()
    return y.view(B, 3, C // 3, H, W).transpose(1, 2).contiguous().view(B, C, W, H)


def of_rows(y):
    """The rows of groups are swapped: no shuffle of channels."""
    B, C, H, W = y.size()
    return y.view(B, 3, C // 3, H, W).transpose(2, 3).contiguous().view(B, C, H, W)


SPELLINGS = {f.__name__: f for f in (torchvisions, by_shape, by_method, turned, of_rows)}


@pytest.mark.parametrize("form", SPELLINGS)
def test_a_channel_shuffle_is_one_function(form, g):
    x = torch.randn(2, 3, 6, 6 if form == "turned" else 5, generator=g)
    model, packed = converted(Shuffle(form), x)
    called = [node.target for node in packed.graph.nodes]
    one = form not in ("turned", "of_rows")
    assert (torch.channel_shuffle in called) is one
    assert ("contiguous" in called) is (form in ("turned", "of_rows"))
    with torch.no_grad(), sk.float_simulation():
        assert_same_bits(packed(x), model(x))
    assert one is not any(target in ("size", "reshape", torch.reshape) for target in called)


MOVED = {
    "upsampled": lambda x: F.interpolate(x, scale_factor=2),
    "reflected": lambda x: F.pad(x, (1, 2, 0, 1), "reflect"),
    "replicated": lambda x: F.pad(x, (1, 2, 0, 1), "replicate"),
    "gathered": lambda x: x[:, :, [0, 2, 2]],
    "rolled": lambda x: x.roll(1, 2).flip(3),
    "largest": lambda x: x.amax(3, keepdim=True),
}


class Moved(nn.Module):
    """The signs that a layer writes are moved about before the next layer reads them."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.form, self.stem, self.head = form, nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)
        self.one, self.norm, self.relu = nn.Conv2d(8, 40, 1), nn.BatchNorm2d(40), nn.ReLU()
        self.two = nn.Conv2d(40, 16, 3, padding=1)

    def forward(self, x):
        return self.head(self.two(MOVED[self.form](self.relu(self.norm(self.one(self.stem(x)))))))


@pytest.mark.parametrize("form", MOVED)
def test_what_moves_signs_keeps_them(form, g):
    x = torch.randn(2, 3, 6, 5, generator=g)
    model, packed = converted(Moved(form), x)
    assert model.two.activation is model.relu
    with torch.no_grad(), sk.float_simulation():
        assert_same_bits(packed(x), model(x))

"""Binarize a network of your own, written the way timm writes them: stages of blocks, a classifier that can be reset.

    python examples/own_model.py

It shows what `prepare` says of such a network, how to keep layers in float, and what a packed network tells of itself.
The data are made: stripes of two directions under noise.
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import stompp_kernels as sk


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, and squeeze-and-excitation on the way."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(outputs, outputs // 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs // 4, outputs, 1),
            nn.Sigmoid(),
        )
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x * self.se(x) + shortcut)


class Net(nn.Module):
    """A stem, stages of blocks and a classifier.

    Args:
        widths: channels of each stage; each but the first halves the image.
        num_classes: size of the output.
    """

    def __init__(self, widths=(32, 64), num_classes=2):
        super().__init__()
        self.num_features = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        blocks, inputs = [], widths[0]
        for stage, outputs in enumerate(widths):
            blocks += [Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs)]
            inputs = outputs
        self.stages = nn.Sequential(*blocks)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes):
        """Make a new last layer."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x):
        """Return the features [N, C, H, W] of images [N, 3, H, W]."""
        return self.stages(self.stem(x))

    def forward_head(self, x):
        """Return the logits [N, num_classes] of features."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def stripes(count):
    """Returns images [count, 3, 16, 16] of stripes along rows or columns, and which [count]."""
    labels = torch.randint(2, (count,))
    wave = torch.sin(torch.arange(16) + 6.28 * torch.rand(count, 1))  # [count, 16]
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, wave[:, None, :, None], wave[:, None, None, :])
    return images + 0.7 * torch.randn(count, 3, 16, 16), labels


def main(arguments=None):
    """Run the example; ``arguments`` are the command line's words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", default="own_model.safetensors", help="Where the packed network goes.")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)

    # Squeeze-and-excitation has few weights, and its input is an average, which carries no sign: without `keep` prepare
    # raises an error that names these layers and ends in a `keep=[...]` to paste. "downsample" repeats the default.
    model, report = sk.prepare(Net(), stripes(8)[0], keep=[r"\.se\.", "downsample"])
    print(report)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    progression = sk.StoMPP(model, options.steps, regime="ste", surrogate="clip", refresh=5)
    for _ in range(options.steps):
        images, labels = stripes(32)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        progression.step()

    images, labels = stripes(256)
    packed = sk.convert(model, verify=images[:8])
    print(sk.explain(packed, images[:1]))  # the kernel, the bytes and the share of time of each layer
    sk.save_packed(packed, options.output)
    right = (sk.load_packed(options.output)(images).argmax(1) == labels).float().mean().item()
    print(f"{right:.1%} of new images right")


if __name__ == "__main__":
    main()

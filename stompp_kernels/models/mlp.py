"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stompp_kernels.models.common import check_sizes
from stompp_kernels.models.registry import register


class MLP(nn.Sequential):
    """Linear, BatchNorm and ReLU for each width, then one linear layer.

    Args:
        num_classes: outputs.
        widths: features of the hidden layers.
        in_channels, image_size: of the images, which are flattened.

    Shape:
        [B, in_channels, image_size, image_size] to [B, num_classes].

    Raises:
        ValueError: a size is no integer of at least 1.

    Example:
        >>> sk.models.MLP(widths=(32, 32))(torch.randn(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        widths: Sequence[int] = (512, 512, 512),
        in_channels: int = 1,
        image_size: int = 8,
    ) -> None:
        check_sizes(in_channels=in_channels, image_size=image_size, num_classes=num_classes)
        check_sizes(**{f"widths[{index}]": width for index, width in enumerate(widths)})
        super().__init__(nn.Flatten())
        features = in_channels * image_size**2
        for width in widths:
            self.extend((nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()))
            features = width
        self.append(nn.Linear(features, num_classes))


register("mlp", MLP, "Multilayer perceptron: Linear - BatchNorm - ReLU, images are flattened")

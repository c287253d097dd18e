"""The shapes that the suite and the comparisons with other libraries measure."""

from __future__ import annotations

from dataclasses import dataclass

CONVS = ((56, 64), (28, 128), (14, 256), (7, 512))  # (pixels, channels) of ResNet's 3x3 layers
BERT = ((768, 768), (3072, 768), (768, 3072))  # (N, K)


@dataclass(frozen=True)
class Conv:
    """A convolution of square images with "same" padding."""

    size: int
    C: int
    O: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    batch: int = 1

    @property
    def name(self) -> str:
        parts = [f"{self.kernel}x{self.kernel}", f"{self.size}x{self.size}x{self.C}"]
        if self.O != self.C:
            parts.append(f"to {self.O} channels")
        if self.stride != 1:
            parts.append(f"stride {self.stride}")
        if self.groups != 1:
            parts.append("depthwise" if self.groups == self.C else f"{self.groups} groups")
        if self.batch != 1:
            parts.append(f"batch {self.batch}")
        return ", ".join(parts)

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def pixels(self) -> int:
        """The pixels of the output, all images together."""
        return self.batch * (-(-self.size // self.stride)) ** 2

    @property
    def operations(self) -> int:
        return 2 * self.O * (self.C // self.groups) * self.kernel**2 * self.pixels

    @property
    def weights(self) -> int:
        return self.O * (self.C // self.groups) * self.kernel**2

    @property
    def inputs(self) -> int:
        """Values read."""
        return self.batch * self.size**2 * self.C


DEPTHWISE = (Conv(56, 128, 128, groups=128), Conv(14, 512, 512, groups=512), Conv(56, 128, 128, 3, 2, 128))

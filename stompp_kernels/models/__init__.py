"""Networks to train."""

from stompp_kernels.models.residual import BasicBlock, SmallResNet

__all__ = ["BasicBlock", "SmallResNet"]

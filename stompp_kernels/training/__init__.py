"""A loop for a model and data of one's own, data sets, recipes, runs, what is made of them, and the demo."""

from stompp_kernels.training.distill import Distillation
from stompp_kernels.training.fit import Fit, fit

__all__ = ["Distillation", "Fit", "fit"]

"""When what is committed: p(t) shapes, windows, order of execution, the StoMPP controller."""

from stompp_kernels.progression.execution import link, trace_calls
from stompp_kernels.progression.stompp import Progress, StoMPP, Unit

__all__ = ["Progress", "StoMPP", "Unit", "link", "trace_calls"]

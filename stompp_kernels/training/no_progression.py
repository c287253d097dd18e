"""What stands in a progression's place where a float network is trained."""

from __future__ import annotations

from typing import Any

from stompp_kernels.progression import Progress, Unit


class NoProgression:
    """Has no units and counts steps: a float network goes through the same run, as a teacher or a twin."""

    units: tuple[Unit, ...] = ()
    refresh = 1.0
    frontier = 0

    def __init__(self) -> None:
        self._step = 0

    def step(self) -> None:
        """Counts a step."""
        self._step += 1

    def progress(self) -> Progress:
        """Returns the number of steps, and nothing committed."""
        return Progress(self._step, 0, len(self.units), (), 0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps."""
        return {"step": self._step, "config": {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]

    def _end_early(self) -> None:
        """There is nothing to warn of."""

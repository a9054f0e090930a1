"""Counts the steps that were skipped because their loss or gradients were not finite."""

from dataclasses import asdict, dataclass, field
from typing import Any

WINDOW = 1000  # steps


@dataclass
class SkippedSteps:
    """Counter of skipped steps, with the limits at which a run must end.

    Attributes:
        max_in_a_row: this many skipped steps in a row end the run.
        max_share: more than this share of 1000 among the last 1000 end it too, however young the run is.
        total: skipped steps since the run began.
        in_a_row: length of the current series.
        recent: iterations (from 1) of the skipped steps among the last 1000 before the newest of them.
    """

    max_in_a_row: int = 10
    max_share: float = 0.01
    total: int = 0
    in_a_row: int = 0
    recent: list[int] = field(default_factory=list)

    def count(self, iteration: int, skipped: bool) -> str | None:
        """Count one step; returns why the run must end, or None."""
        if not skipped:
            self.in_a_row = 0
            return None
        self.total += 1
        self.in_a_row += 1
        self.recent = [*(step for step in self.recent if step > iteration - WINDOW), iteration]
        if self.in_a_row >= self.max_in_a_row:
            return (
                f"{self.in_a_row} steps in a row were skipped "
                f"(schedule.max_skipped_in_a_row = {self.max_in_a_row})"
            )
        if len(self.recent) > self.max_share * WINDOW:
            return (
                f"{len(self.recent)} of the last {WINDOW} steps were skipped "
                f"(schedule.max_skipped_share = {self.max_share:.2%})"
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """The counts, without the limits."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("max_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts."""
        self.total, self.in_a_row, self.recent = state["total"], state["in_a_row"], list(state["recent"])

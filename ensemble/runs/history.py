"""What a run did before this process went on with it, as its checkpoints tell, for its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class History:
    """How a run was asked for, what it took, and whether it was made longer."""

    command: str = ""
    wall_seconds: float = 0.0
    startup_seconds: float | None = None
    """Until its very first step."""
    steps: int = 0
    steady_seconds: float = 0.0
    """Those of `steps`, which are all but the first ones of each process."""
    shorter: tuple[int, ...] = ()
    """How many steps it had in all before it was made longer, each time."""

    @classmethod
    def of(cls, saved: Sequence[tuple[Mapping[str, Any], int]], now: int, command: str) -> History:
        """What all trials tell, each with how many steps it was to have; `command` asks for so many `now`."""
        if not saved:
            return cls(command)
        told = [cls(**{**one, "shorter": tuple(one.get("shorter", ()))}) for one, _ in saved]
        latest = max(told, key=lambda history: history.wall_seconds)
        lengths = {length for _, length in saved}
        shorter = {*lengths, *(length for one in told for length in one.shorter)}
        commands = [latest.command, command if max(lengths) < now else ""]
        return replace(
            latest,
            command=" && ".join(filter(None, commands)),
            shorter=tuple(sorted(length for length in shorter if length < now)),
        )

    def plus(self, *, wall: float, startup: float | None, steps: int, steady: float) -> History:
        """With what this process did."""
        return replace(
            self,
            wall_seconds=self.wall_seconds + wall,
            startup_seconds=startup if self.startup_seconds is None else self.startup_seconds,
            steps=self.steps + steps,
            steady_seconds=self.steady_seconds + steady,
        )

    def plain(self) -> dict[str, Any]:
        """For a checkpoint; `of` reads it."""
        return asdict(self)

    def notes(self) -> list[str]:
        """What the recipe does not tell of its images."""
        if not self.shorter:
            return []
        steps = ", then ".join(map(str, self.shorter))
        return [
            f"the run began with {steps} steps and was made longer: learning rates up to there were those of the "
            "shorter run, so the recipe run anew may give other images"
        ]

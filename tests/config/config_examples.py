"""Classes for these tests to read: a run, with an optimiser of a family and terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ensemble.config.checked import Checked
from ensemble.config.kinds import Kind


class Optimizer(Kind):
    """How parameters are stepped."""


@dataclass(frozen=True)
class Adam(Optimizer, kind="adam"):
    """Adam (Kingma & Ba 2015)."""

    lr: PositiveFloat
    """The step."""
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Lbfgs(Optimizer, kind="lbfgs"):
    history: PositiveInt = 10
    line_search: bool = True

    def rules(self) -> Iterator[str]:
        if self.history > 100 and not self.line_search:
            yield "history: more than 100 needs a line search"
        if self.history == 13:
            yield "13 steps are bad luck"


class Norm(Kind, default="plain"):
    pass


@dataclass(frozen=True)
class Plain(Norm, kind="plain"):
    scale: float = 1.0


@dataclass(frozen=True)
class Double(Norm, kind="double"):
    inner: Norm = Plain()
    outer: Norm = Plain(2.0)


@dataclass(frozen=True)
class Term(Checked):
    weight: float = 1.0
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run(Checked):
    """One run."""

    seed: int
    optimizer: Optimizer
    name: Annotated[str, Field(min_length=1, max_length=99)] = "run"
    """Of its folder."""
    flip: bool = True
    precision: Literal["fp32", "bf16", "off"] = "fp32"
    batch: PositiveInt | Literal["auto"] | None = "auto"
    clip: float | None = None
    targets: str | int | tuple[int | str, ...] = "all"
    terms: tuple[Term, ...] = ()
    norm: Norm | None = None
    plain: Plain | Literal["none"] = "none"
    by_layer: dict[str, float] = field(default_factory=dict)
    size: float | int = 1
    cells: Annotated[int | None, Field(ge=1)] | Literal["auto"] = None
    level: Literal[1, 2] = 1
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    below: Annotated[float, Field(gt=-1.5, lt=1)] = 0.0
    steps: Annotated[int, Field(gt=1, lt=100, multiple_of=2)] = 10
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=3)] = ("a",)
    devices: str | Annotated[tuple[str, ...], Field(min_length=2)] = "cpu"
    sizes: tuple[Annotated[int, Field(ge=0)], ...] = ()

    def rules(self) -> Iterator[str]:
        if self.seed < 0:
            yield f"seed: must be at least 0, got {self.seed}"
        if self.name == "nameless":
            yield "call it something else"


def run(**values: object) -> dict[str, object]:
    """A mapping for `Run`, of the required fields and `values`."""
    return {"seed": 1, "optimizer": {"kind": "adam", "lr": 0.1}, **values}

"""A lack of memory is known in all the words that torch and numpy have for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ensemble.machine.errors import is_out_of_memory
from models._trial import is_out_of_memory as of_models


@pytest.mark.parametrize(
    "asks",
    [
        lambda: torch.empty(1 << 50),
        lambda: torch.empty(10**9, 10**9, 3),
        lambda: torch.empty(2, 3, 10**9, 10**9),
        lambda: np.ones(1 << 50),
    ],
)
def test_a_lack_of_memory(asks: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        asks()
    assert is_out_of_memory(caught.value) and of_models(caught.value)


def test_other_failures_are_none() -> None:
    for error in (RuntimeError("shapes do not fit"), ValueError("memory"), OSError(28, "No space left on device")):
        assert not is_out_of_memory(error) and not of_models(error)

"""How long OpenMP's threads wait for each other in loops before they sleep; they are told as torch is loaded."""

from __future__ import annotations

import os

_SPINS = "GOMP_SPINCOUNT"
_BESIDE_OTHERS = 3000
"""Turns of the loop, some microseconds; by default libgomp's threads take 300,000."""
_BUSY = 0.5
"""The machine's load from which on other work counts as going on."""


def _load() -> float:
    """How many processes computed here over the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def wait_briefly_beside_others() -> None:
    """Where other work goes on, threads of this process will sleep soon; call it before torch is loaded.

    A thread that waits in a loop for one which other work has displaced takes the core that this one needs. Alone,
    loops are a little faster than sleep. What the user has set stays.
    """
    if not {_SPINS, "OMP_WAIT_POLICY"} & os.environ.keys() and _load() > _BUSY:
        os.environ[_SPINS] = str(_BESIDE_OTHERS)

"""What a launcher says of this process, known before any group exists and without torch."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """This process' global rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_ranks() -> int:
    """How many processes torchrun (or our own launcher) started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher started this process as a rank."""
    return "RANK" in os.environ


def is_restarted() -> bool:
    """Whether torchrun started the ranks anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_main_process() -> bool:
    """Whether this process is rank 0."""
    return launched_rank() == 0

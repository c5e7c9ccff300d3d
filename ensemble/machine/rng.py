"""Random generators keyed by what they are for, so that a resumed run draws what the uninterrupted one drew."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *key: int | str) -> torch.Generator:
    """A CPU generator that depends on (seed, key) alone, e.g. `generator(seed, "jitter", step)`.

    Draws are made on the CPU whatever the device, for the whole batch: every rank and every device sees
    the same numbers.
    """
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))

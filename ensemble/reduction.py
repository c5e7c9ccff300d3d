"""Sums over cells and ranks: in floating point, or in fixed point where the order must not matter."""

from __future__ import annotations

from collections.abc import Callable

import torch

SumAcrossRanks = Callable[[torch.Tensor], None]
"""Replaces a tensor, in place, by its sum over all ranks."""


class FloatSum:
    """Plain sums in the dtype of the terms: fast, and exact to rounding for any placement."""

    def zeros(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def add(self, total: torch.Tensor, term: torch.Tensor) -> None:
        total += term

    def result(self, total: torch.Tensor, reduce: SumAcrossRanks, dtype: torch.dtype) -> torch.Tensor:
        reduce(total)
        return total.to(dtype)


class FixedPointSum:
    """Sums of 64-bit integers in units of 2^-bits: associative, so any placement gives the same bits.

    Terms must lie within 2^(62 - bits) of zero; a larger or non-finite one becomes the largest number of that
    range, which no healthy run meets and which the caller sees as an overflow.
    """

    def __init__(self, bits: int = 44) -> None:
        self.bits = bits

    def zeros(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, total: torch.Tensor, term: torch.Tensor) -> None:
        limit = 2.0 ** (62 - self.bits - 10)  # room for 2^10 terms
        bounded = torch.nan_to_num(term.double(), nan=limit, posinf=limit, neginf=-limit).clamp(-limit, limit)
        total += (bounded * 2.0**self.bits).round().to(torch.int64)

    def result(self, total: torch.Tensor, reduce: SumAcrossRanks, dtype: torch.dtype) -> torch.Tensor:
        reduce(total)
        return (total.double() * 2.0**-self.bits).to(dtype)


Reduction = FloatSum | FixedPointSum

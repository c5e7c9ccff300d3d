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

    Terms and sums must lie within `limit` = 2^(52 - bits) of zero, which leaves room for 2^10 terms. A sum beyond
    it, or one with a term that is beyond it or not finite, comes out as NaN on every rank, of up to 2^7 ranks.
    """

    _LOST = 2**55
    """What a rank's sum with such a term is and stays: 2^3 limits, so that others' sums do not bring it back, and
    2^7 ranks that all have one do not wrap around."""

    def __init__(self, bits: int = 44) -> None:
        self.bits = bits
        self.limit = 2.0 ** (52 - bits)

    def zeros(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, total: torch.Tensor, term: torch.Tensor) -> None:
        wide = term.double()
        fits = wide.abs() <= self.limit
        lost = ~fits | (total == self._LOST)
        total += (torch.where(fits, wide, 0.0) * 2.0**self.bits).round().to(torch.int64)
        total.masked_fill_(lost, self._LOST)

    def result(self, total: torch.Tensor, reduce: SumAcrossRanks, dtype: torch.dtype) -> torch.Tensor:
        reduce(total)
        value = total.double() * 2.0**-self.bits
        return torch.where(value.abs() <= self.limit, value, torch.nan).to(dtype)


Reduction = FloatSum | FixedPointSum

"""Figures that tests must not assert: speed, memory, survival."""

"""Preferred images of units: made, read, matched, drawn."""

METHODS = ("fourier", "gd", "lbfgs", "maco")
"""Ways to make them; `methods` has their recipes."""

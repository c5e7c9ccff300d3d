"""Ways to make preferred images, as fields of a recipe."""

from __future__ import annotations

from typing import Any

from ensemble.config.parsing import to_plain
from ensemble.objectives.activation import Activation

LARGE = 128
"""Pixels from which a `fourier` image is seen at half its size."""

_SMALLER = 13 / 16
_VARIED = {"zoom": 0.75, "noise": 0.1}
"""Small images are seen at 13/16 of their size, in parts of 3/4 of the side and more, with noise: so what is in them
counts at 0.8 to 1.1 of its size, and without what JPEG takes away."""


def fields_of(
    method: str,
    term: Activation,
    *,
    size: int,
    networks: int,
    images: int,
    generator: str | None = None,
    bn_matching: float = 0.0,
    placed: bool = False,
) -> dict[str, Any]:
    """The recipe's fields of a method for images of `size` pixels; what its source gives in pixels goes with the size.

    `placed` keeps the size of views, where units are at places that only maps of that size have. `bn_matching` is the
    weight of BN matching for each of the images, whose activations are summed.

    ValueError for a generator with a method that has an image of its own, or a weight below 0.
    """
    if bn_matching < 0:
        raise ValueError(f"bn_matching: a weight of 0 or more, not {bn_matching:g}")
    if generator is not None and method not in ("gd", "lbfgs"):
        raise ValueError(f"generator: methods gd and lbfgs move a generator's code; {method} has an image of its own")
    matching = {"kind": "bn_matching", "weight": bn_matching * images}
    fields: dict[str, Any] = {
        "objectives": [to_plain(term), *([matching] if bn_matching else [])],
        "ensemble": {"aggregation": "equal"} if networks > 1 and method != "lbfgs" else {},
        "best_every": 0,
    }
    image, stage, optimizer = _OF[method](size, placed) if generator is None else _OF_CODES[method](generator)
    return fields | {"image": image | {"size": size}, "stages": [stage], "optimizer": optimizer}


Made = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""Image, stage and optimizer."""


def _smaller(size: int, placed: bool) -> dict[str, Any]:
    return _VARIED | ({} if placed else {"size": max(1, round(_SMALLER * size))})


def _fourier(size: int, placed: bool) -> Made:
    """As Olah, Mordvintsev & Schubert (2017): decorrelated Fourier coefficients, Adam, small shifts and crops.

    Large images are seen at half their size: at the whole, what excites a unit most is grain that a blur of two pixels
    takes away.
    """
    image = {"start": {"kind": "noise"}}
    stage: dict[str, Any] = {"iterations": 256, "jitter": max(1, size // 16), "jitter_per_image": True}
    if size < LARGE or placed:
        stage |= _smaller(size, placed)
    else:
        stage |= {"size": size // 2, "jitter": size // 32, "zoom": 0.6}
    return image, stage, {"kind": "adam", "lr": 0.05, "betas": [0.9, 0.999], "schedule": "constant"}


def _descent(size: int, _: bool) -> Made:
    """cnnpref's demonstration of higher layers, in the correct form; its pixels are of 227."""
    image = {"parameterization": {"kind": "pixels", "space": "caffe", "clip": False}, "start": {"kind": "uniform"}}
    stage = {"iterations": 200, "jitter": max(1, round(32 * size / 227)), "jitter_mode": "wrap"}
    optimizer = {
        **{"kind": "gradient_descent", "lr": 1.0, "momentum": 0.001, "decay": 0.001},
        **{"blur": [2.5 * size / 227, 0.5 * size / 227], "clip_small_norm": 5.0, "clip_small_contribution": 5.0},
    }
    return image, stage, optimizer


def _bounded(size: int, _: bool) -> Made:
    """cnnpref's: pixels within their bounds, nothing else.

    It starts from dead leaves: at black, and in noise too, many rectified units are 0 and have no gradient.
    """
    image = {"parameterization": {"kind": "pixels"}, "start": {"kind": "dead_leaves"}}
    return image, {"iterations": 200}, {"kind": "lbfgsb"}


def _phases(size: int, placed: bool) -> Made:
    """As Fel et al. (2023, MACO): phases alone, small parts of the image, noise; of small images larger parts."""
    image = {"parameterization": {"kind": "maco", "deviation": 2.0}, "start": {"kind": "noise", "scale": 1.0}}
    stage = {"iterations": 256} | ({"zoom": 0.25, "noise": 0.08} if size >= LARGE else _smaller(size, placed))
    return image, stage, {"kind": "nadam", "lr": 1.0, "schedule": "constant"}


def _coded(generator: str) -> dict[str, Any]:
    return {
        "parameterization": {"kind": "generator", "pretrained": {"kind": generator}},
        "start": {"kind": "noise", "scale": 0.85},
    }


def _coded_descent(generator: str) -> Made:
    """cnnpref's defaults of gradient descent on codes; lr falls to nothing."""
    optimizer = {"kind": "gradient_descent", "lr": 2.0, "lr_end": 1e-10, "momentum": 0.9, "decay": 0.01}
    return _coded(generator), {"iterations": 200}, optimizer


def _coded_bounded(generator: str) -> Made:
    """cnnpref's: codes within their bounds."""
    return _coded(generator), {"iterations": 200}, {"kind": "lbfgsb"}


_OF = {"fourier": _fourier, "gd": _descent, "lbfgs": _bounded, "maco": _phases}
_OF_CODES = {"gd": _coded_descent, "lbfgs": _coded_bounded}

"""What a BatchNorm's affine map is followed by, as far as the kernel computes it in the same pass."""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Form(enum.IntEnum):
    """What becomes of a = scale * x + shift; the numbers are those of moments.cpp."""

    AFFINE = 0
    """a"""
    RELU = 1
    """relu(a)"""
    ADD_RELU = 2
    """relu(a + residual), the end of a residual block"""
    RELU6 = 3
    """min(relu(a), 6)"""
    LEAKY_RELU = 4
    """a, and for a < 0 the parameter times a"""
    HARDSWISH = 5
    """a min(relu(a + 3), 6) / 6"""
    SILU = 6
    """a / (1 + e^-a)"""
    GELU = 7
    """a times the normal distribution function of a"""


class Activation(NamedTuple):
    """A form that is an activation, and its parameter, which only `LEAKY_RELU` has."""

    form: Form
    parameter: float = 0.0


_MODULES: dict[type[nn.Module], Form] = {
    nn.ReLU: Form.RELU,
    nn.ReLU6: Form.RELU6,
    nn.Hardswish: Form.HARDSWISH,
    nn.SiLU: Form.SILU,
}


def activation_of(module: nn.Module) -> Activation | None:
    """What `module` is to the kernel: of one of torch's own classes, exactly; None for all else."""
    if form := _MODULES.get(type(module)):
        return Activation(form)
    if type(module) is nn.LeakyReLU:
        return Activation(Form.LEAKY_RELU, float(module.negative_slope))
    if type(module) is nn.GELU and module.approximate == "none":
        return Activation(Form.GELU)
    if type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (0, 6):
        return Activation(Form.RELU6)
    return None


def activate(a: torch.Tensor, form: Form, parameter: float) -> torch.Tensor:
    """f(a) by torch's own operations; relu's for `ADD_RELU`, whose `a` has the residual in it."""
    match form:
        case Form.AFFINE:
            return a
        case Form.RELU6:
            return F.relu6(a)
        case Form.LEAKY_RELU:
            return F.leaky_relu(a, parameter)
        case Form.HARDSWISH:
            return F.hardswish(a)
        case Form.SILU:
            return F.silu(a)
        case Form.GELU:
            return F.gelu(a)
        case _:
            return a.relu()


def through(a: torch.Tensor, dy: torch.Tensor, form: Form, parameter: float) -> torch.Tensor:
    """f'(a) dy by the operations that torch's own backward passes take, of forms without a residual."""
    match form:
        case Form.AFFINE:
            return dy
        case Form.RELU6:
            return torch.ops.aten.hardtanh_backward(dy, a, 0.0, 6.0)
        case Form.LEAKY_RELU:
            return torch.ops.aten.leaky_relu_backward(dy, a, parameter, False)
        case Form.HARDSWISH:
            return torch.ops.aten.hardswish_backward(dy, a)
        case Form.SILU:
            return torch.ops.aten.silu_backward(dy, a)
        case Form.GELU:
            return torch.ops.aten.gelu_backward(dy, a)
        case _:
            return torch.ops.aten.threshold_backward(dy, a, 0)

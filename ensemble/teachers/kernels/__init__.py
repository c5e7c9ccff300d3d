"""C++ kernels with plain twins: the moments that BN matching adds to a frozen affine map; depthwise convolutions; those
of 3 x 3 in Winograd's form."""

from ensemble.teachers.kernels.depthwise import depthwise_conv
from ensemble.teachers.kernels.form import Activation, Form, activation_of
from ensemble.teachers.kernels.moments import affine_with_moments, channel_moments
from ensemble.teachers.kernels.winograd import BLOCK, gradient_filters, winograd_conv, winograd_filters, winograd_pays

__all__ = [
    "BLOCK",
    "Activation",
    "Form",
    "activation_of",
    "affine_with_moments",
    "channel_moments",
    "depthwise_conv",
    "gradient_filters",
    "winograd_conv",
    "winograd_filters",
    "winograd_pays",
]

"""C++ kernels with plain twins: the moments that BN matching adds to a frozen affine map; depthwise convolutions."""

from ensemble.teachers.kernels.depthwise import depthwise_conv
from ensemble.teachers.kernels.form import Activation, Form, activation_of
from ensemble.teachers.kernels.moments import affine_with_moments, channel_moments

__all__ = ["Activation", "Form", "activation_of", "affine_with_moments", "channel_moments", "depthwise_conv"]

"""The one operation that BN matching adds to a network: per-channel moments beside the frozen affine map."""

from ensemble.teachers.kernels.form import Activation, Form, activation_of
from ensemble.teachers.kernels.moments import affine_with_moments, channel_moments

__all__ = ["Activation", "Form", "activation_of", "affine_with_moments", "channel_moments"]

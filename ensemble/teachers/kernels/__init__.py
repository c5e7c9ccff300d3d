"""The one operation that BN matching adds to a network: per-channel moments beside the frozen affine map."""

from ensemble.teachers.kernels.moments import Form, affine_with_moments, channel_moments

__all__ = ["Form", "affine_with_moments", "channel_moments"]

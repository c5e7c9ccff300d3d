"""The one operation that BN matching adds to a network: per-channel moments beside the frozen affine map."""

from ensemble.kernels.moments import affine_with_moments, channel_moments, channel_moments_plain

__all__ = ["affine_with_moments", "channel_moments", "channel_moments_plain"]

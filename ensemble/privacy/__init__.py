"""What a network and its statistics give away of its training: detectors, each with its null and its control."""

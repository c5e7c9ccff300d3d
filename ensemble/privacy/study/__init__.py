"""What a bank of networks of known training says of detectors: the study behind `invert.py leakage`."""

"""n2s-med: denoise PET, CT and MR scans with a score network trained on noisy scans only."""

__version__ = "0.1.0"

"""Bounds beyond which a header is damaged, whatever it says."""

SMALLEST_MM, LARGEST_MM = 1e-6, 1e6
"""Lengths beyond these are errors, not scans."""

DEFLATE_RATIO = 1032
"""Deflate cannot shrink data further than this (zlib technical details)."""

"""Whole jobs, as the command line, the batch and the node run them."""

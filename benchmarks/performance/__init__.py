"""The parts of the benchmark of speed. This file imports none: some of them run in processes that are timed."""

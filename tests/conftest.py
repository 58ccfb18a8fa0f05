"""One torch thread for each test process: several pools on one machine only wait for each other."""

import signal

import pytest
import torch

pytest.register_assert_rewrite("bundle_runs", "job_scans")

torch.set_num_threads(1)


def pytest_sessionstart() -> None:
    """Take Ctrl-C as a terminal gives it: a shell that runs the tests in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

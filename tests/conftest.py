"""One torch thread for each test process: several pools on one machine only wait for each other."""

import pytest
import torch

pytest.register_assert_rewrite("bundle_runs", "job_scans")

torch.set_num_threads(1)

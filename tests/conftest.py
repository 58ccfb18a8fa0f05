"""One torch thread for each test process: several pools on one machine only wait for each other."""

import torch

torch.set_num_threads(1)

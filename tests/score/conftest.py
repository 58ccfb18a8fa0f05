"""One thread: a busy machine makes two slower than one, and the steps here are small."""

import torch

torch.set_num_threads(1)

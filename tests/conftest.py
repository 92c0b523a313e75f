"""What all tests share."""

import torch

torch.set_num_threads(1)  # the models are so small that a second thread costs more than it does

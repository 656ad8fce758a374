"""One process of data-parallel training: saves the gradients that it ends up with."""

from __future__ import annotations

import os
import sys

import torch
from torch.nn.parallel import DistributedDataParallel
from training_group import arguments, loss_of, model, process_group, share


def main() -> None:
    """Runs one step on this rank's part of the batch."""
    options = arguments()
    with process_group(options):
        network = DistributedDataParallel(model())
        loss_of(network, *share(options)).backward()
        gradients = {
            name: parameter.grad
            for name, parameter in network.module.named_parameters()
            if parameter.grad is not None
        }
        torch.save(gradients, options.output)


main()
# Without the interpreter's end, where gloo's thread and the group's destructor can wait for each
# other.
sys.stdout.flush()
os._exit(0)

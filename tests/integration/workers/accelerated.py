"""One process of both kinds of training of accelerated PEFT models: it starts slowly, so both."""

from __future__ import annotations

import os
import sys

import torch
from accelerated_ddp import data_parallel
from accelerated_fsdp import fully_sharded
from training_group import arguments, process_group


def main() -> None:
    """Saves what each kind of training gives, under its name."""
    options = arguments()
    with process_group(options):
        saved = {"data parallel": data_parallel(options), "sharded": fully_sharded(options)}
        torch.save(saved, options.output)


main()
# As in ddp.py: the interpreter's end can hang.
sys.stdout.flush()
os._exit(0)

"""One process of every kind of training of an injected model: it starts slowly, so all in one."""

from __future__ import annotations

import os
import sys

import torch
from injected_ddp import data_parallel
from injected_fsdp import fully_sharded
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

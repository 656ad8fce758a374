"""Fine-tune a causal language model with transformers' Trainer and PEFT's GraLoRA, accelerated.

    python examples/finetune_trainer.py

SmolLM2-135M-Instruct learns the source of Python's standard library. The folder --output then holds
the adapter as PEFT saves it, Trainer's checkpoints and a record of the run.
"""

from __future__ import annotations

import argparse

import torch
from finetuning import determinism
from finetuning.options import add_model_and_text
from frameworks import options as command_line
from frameworks import results
from torch import Tensor

CPU = torch.device("cpu")
NEEDED = ("accelerate", "peft", "transformers")


def examples(windows: Tensor) -> list[dict[str, Tensor]]:
    """What a causal language model of transformers takes, from token ids ``[count, length]``."""
    return [{"input_ids": ids, "labels": ids} for ids in windows]


def run(options: argparse.Namespace) -> None:
    """Load, adapt and train."""
    command_line.check(options, *NEEDED)
    from frameworks import adapters, language, trainers
    from transformers import Trainer, TrainingArguments

    checkpoint = results.begin(options, trainers.COMPLETE)
    determinism.prepare(options.device, options.seed, deterministic=False)
    # Trainer moves it to the device of its process.
    model, tokenizer = language.load(options, CPU)
    train, held_out = language.windows(options, tokenizer)
    model = adapters.adapt(model, options)
    trainer = Trainer(
        model,
        trainers.one_gpu(TrainingArguments(**trainers.settings(options))),
        train_dataset=examples(train),
        eval_dataset=examples(held_out),
    )
    trainers.run(trainer, options, checkpoint)


def main() -> None:
    """Run; end with one line and status 1 where something is wrong that the user can mend."""
    parser = command_line.parser(__doc__.splitlines()[0], "gralora-trainer", steps=100, batch=1)
    add_model_and_text(parser)
    command_line.add_window(parser)
    command_line.start(parser, run, command_line.LESS_MEMORY)


if __name__ == "__main__":
    main()

"""Fine-tune a chat model with TRL's SFTTrainer and PEFT's GraLoRA, accelerated.

    python examples/finetune_trl.py

SmolLM2-135M-Instruct learns to write docstrings: the prompts are functions of Python's standard
library, the completions what their authors wrote about them. The loss is that of the completions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from finetuning import determinism
from finetuning.errors import FinetuneError
from finetuning.options import add_model_and_cache
from frameworks import docstrings, jsonl, results
from frameworks import options as command_line

CPU = torch.device("cpu")
NEEDED = ("accelerate", "datasets", "peft", "transformers", "trl")


def load_examples(options: argparse.Namespace, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Return what to train on and what is held out."""
    if options.data is not None:
        return jsonl.load(options.data, options.held_out)
    chat = tokenizer.chat_template is not None
    held_out = docstrings.held_out_examples(options.held_out, chat=chat)
    return docstrings.train_examples(chat=chat), held_out


def check_completions(trainer: Any, options: argparse.Namespace) -> None:
    """Raise FinetuneError where TRL has dropped all examples, their completions being cut off."""
    for name, dataset in (("train on", trainer.train_dataset), ("hold out", trainer.eval_dataset)):
        if len(dataset) == 0:
            raise FinetuneError(
                f"--seq-len: a completion to {name} must begin within {options.seq_len} tokens, "
                "got none (give a larger --seq-len or more examples)"
            )


def run(options: argparse.Namespace) -> None:
    """Load, adapt and train."""
    command_line.check(options, *NEEDED)
    from datasets import Dataset
    from frameworks import adapters, language, trainers
    from trl import SFTConfig, SFTTrainer

    checkpoint = results.begin(options, trainers.COMPLETE)
    determinism.prepare(options.device, options.seed, deterministic=False)
    # Trainer moves it to the device of its process.
    model, tokenizer = language.load(options, CPU)
    train, held_out = load_examples(options, tokenizer)
    arguments = SFTConfig(max_length=options.seq_len, **trainers.settings(options))
    trainer = SFTTrainer(
        adapters.adapt(model, options),
        trainers.one_gpu(arguments),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
    )
    check_completions(trainer, options)
    trainers.run(trainer, options, checkpoint)


def main() -> None:
    """Run; end with one line and status 1 where something is wrong that the user can mend."""
    parser = command_line.parser(__doc__.splitlines()[0], "gralora-trl", steps=100, batch=2)
    add_model_and_cache(parser).add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        help="JSON Lines with text, messages, or prompt and completion; the last tenth is held out "
        "(functions of Python's standard library)",
    )
    command_line.add_window(parser)
    command_line.start(parser, run, command_line.LESS_MEMORY)


if __name__ == "__main__":
    main()

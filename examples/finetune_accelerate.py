"""Fine-tune a causal language model with GraLoRA in a loop of one's own on accelerate.

    python examples/finetune_accelerate.py

SmolLM2-135M-Instruct learns the source of Python's standard library. On several GPUs the script is
started by `accelerate launch` or `torchrun`. Checkpoints hold the adapter, not the whole model.
"""

from __future__ import annotations

import argparse

import smollm2
from finetuning import determinism, models
from finetuning.errors import FinetuneError
from finetuning.options import add_model_and_text
from frameworks import options as command_line
from frameworks import results
from torch import Tensor, nn

import gralora

NEEDED = ("accelerate", "transformers")


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of each token of ``ids [batch, length]`` given those before it."""
    loss: Tensor = model(input_ids=batch["ids"], labels=batch["ids"], use_cache=False).loss
    return loss


def adapt(model: nn.Module, options: argparse.Namespace) -> None:
    """Give every linear layer of `model` but its head an adapter, in place.

    Raises:
        FinetuneError: the adapter does not fit the model.

    """
    try:
        config = gralora.GraLoRAConfig(
            r=options.r,
            k=options.k,
            alpha=options.alpha,
            # Loaded from a file, the default model would pass for the folder that holds the file.
            base_model_name_or_path=options.model or smollm2.NAME,
            task_type="CAUSAL_LM",
        )
        gralora.inject(model, config)
    except (TypeError, ValueError) as error:
        raise FinetuneError(str(error)) from error


def run(options: argparse.Namespace) -> None:
    """Load, adapt, train and save."""
    command_line.check(options, *NEEDED)
    from frameworks import checkpoints, language, loop

    checkpoint = results.begin(options, checkpoints.COMPLETE)
    determinism.prepare(options.device, options.seed, deterministic=False)
    accelerator = loop.start(options)
    model, tokenizer = language.load(options, accelerator.device)
    train, held_out = language.windows(options, tokenizer)
    adapt(model, options)
    if options.grad_checkpointing:
        models.checkpoint(model)

    history = loop.train(
        accelerator,
        model,
        next_token_loss,
        {"ids": train},
        [{"ids": window} for window in held_out.split(1)],
        options,
        checkpoint,
    )
    if accelerator.is_main_process:
        gralora.save_adapter(accelerator.unwrap_model(model), options.output / "adapter")
        results.finish(
            options,
            losses=dict(enumerate(history.losses, 1)),
            held_out=history.held_out,
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            seconds=history.seconds,
        )
    accelerator.end_training()


def main() -> None:
    """Run; end with one line and status 1 where something is wrong that the user can mend."""
    parser = command_line.parser(__doc__.splitlines()[0], "gralora-accelerate", steps=100, batch=1)
    add_model_and_text(parser)
    command_line.add_window(parser)
    command_line.start(parser, run, command_line.LESS_MEMORY)


if __name__ == "__main__":
    main()

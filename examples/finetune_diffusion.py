"""Adapt the attention of a small diffusion transformer (diffusers' DiT) with GraLoRA.

    python examples/finetune_diffusion.py

No pretrained model is fetched. A DiT of 0.6 million parameters first learns to draw the outlines of
shapes and is then frozen; adapters in its attention projections learn filled shapes, by the usual
loss, the error of the predicted noise. The folder --output holds the model, the adapter and
pictures of both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from finetuning import arguments, determinism
from finetuning.errors import FinetuneError
from finetuning.report import progress
from frameworks import options as command_line
from frameworks import pictures, results
from rich.console import Console

import gralora

NEEDED = ("accelerate", "diffusers")
PICTURES = 4096
SHOWN = 12


def load_base(options: argparse.Namespace, *, write: bool) -> Any:
    """Return the model to adapt: that of ``--base``, of the run to go on with, or a new one."""
    from diffusers import DiTTransformer2DModel
    from frameworks import diffusion

    folder = options.base or (options.output / "base" if options.resume else None)
    if folder is not None:
        try:
            return DiTTransformer2DModel.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise FinetuneError(f"--base: diffusers cannot load {folder}: {error}") from error
    model = diffusion.make()
    with progress(Console(quiet=not write), options.base_steps, "examples/s") as display:
        diffusion.train_from_scratch(
            model, options.base_steps, options.device, options.seed, display
        )
    if write:
        model.save_pretrained(options.output / "base")
    return model


def run(options: argparse.Namespace) -> None:
    """Make or load the base, adapt it, train, draw and save."""
    command_line.check(options, *NEEDED)
    from frameworks import checkpoints, diffusion, loop

    checkpoint = results.begin(options, checkpoints.COMPLETE)
    determinism.prepare(options.device, options.seed, deterministic=False)
    accelerator = loop.start(options)
    model = load_base(options, write=accelerator.is_main_process).to(accelerator.device)
    before = diffusion.sample(model, SHOWN, accelerator.device, options.seed)
    try:
        config = gralora.GraLoRAConfig(
            r=options.r, k=options.k, alpha=options.alpha, target_modules=list(diffusion.ATTENTION)
        )
        gralora.inject(model, config)
    except (TypeError, ValueError) as error:
        raise FinetuneError(str(error)) from error

    columns = pictures.draw("filled", PICTURES, options.seed)
    held_out = pictures.draw("filled", options.held_out, options.seed + 1)
    history = loop.train(
        accelerator,
        model,
        diffusion.noise_loss,
        columns,
        [diffusion.with_noise(held_out, determinism.generator(options.seed))],
        options,
        checkpoint,
    )
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        gralora.save_adapter(model, options.output / "adapter")
        after = diffusion.sample(model, SHOWN, accelerator.device, options.seed)
        pictures.save([columns["pixels"][:SHOWN], before, after], options.output / "samples.png")
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
    parser = command_line.parser(
        __doc__.splitlines()[0], "gralora-diffusion", steps=400, batch=32, held_out=256, lr=5e-3
    )
    base = parser.add_argument_group("model")
    base.add_argument(
        "--base", metavar="FOLDER", type=Path, help="of an earlier run, instead of a new model"
    )
    base.add_argument(
        "--base-steps",
        type=arguments.positive,
        default=2000,
        help="steps that train the new model (%(default)s)",
    )
    command_line.start(parser, run, "a smaller --batch")


if __name__ == "__main__":
    main()

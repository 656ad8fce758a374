"""Fine-tune a causal language model with GraLoRA adapters, and show what came of it.

    python examples/finetune.py

With no argument SmolLM2-135M-Instruct learns the source of Python's standard library. The adapter,
the loss curve and a record of the run are left in the folder --out.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import smollm2
from finetuning import determinism, generation, merged, methods, models, record, report, text
from finetuning.failures import in_one_line
from finetuning.options import Options, check_device, compute_dtype, parse
from finetuning.saving import list_files, load_figure, make_folder, save_trained
from finetuning.training import History, Trainer, train
from rich.console import Console
from torch import Tensor, nn

# Enough for a steady mean: its differences from run to run are far below what training changes.
HELD_OUT_TOKENS = 4096


def run(options: Options, console: Console) -> merged.LogitsDifference | None:
    """Load, train, save, merge and compare; return how far the merged model is off."""
    start = time.perf_counter()
    determinism.prepare(options.device, options.seed, deterministic=options.deterministic)
    figure = load_figure()
    config = methods.adapter_config(options)
    make_folder(options.out)

    with console.status("fetching and loading the model"):
        model, tokenizer = load_model(options)
        corpus = load_corpus(options, model, tokenizer)
    held_out = text.held_out_windows(corpus, HELD_OUT_TOKENS, options.seq_len)
    texts = [generation.continuation(model, tokenizer, corpus.prompt)]
    trained = methods.make_trainable(model, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())

    history = fine_tune(model, list(trained.values()), corpus, held_out, options, console)
    save_trained(model, tokenizer, options)
    digest = determinism.digest(trained)
    trainable = sum(parameter.numel() for parameter in trained.values())
    difference = None
    if config is not None:
        model, difference = merged.merge(model, held_out[:1])
    texts.append(generation.continuation(model, tokenizer, corpus.prompt))

    figure.draw(
        [figure.Curve(options.method, history.losses, history.held_out)],
        f"{Path(options.model or smollm2.NAME).name} on {corpus.name}",
        options.out / "loss.png",
    )
    result: dict[str, Any] = {
        "schema": record.SCHEMA,
        "options": record.options_record(options),
        "environment": record.environment(options.device),
        # What depends on options and environment alone: equal for equal seeds, bit for bit.
        "computation": {
            "losses": history.losses,
            "held_out_losses": {str(step): loss for step, loss in history.held_out.items()},
            "trainable_parameters": trainable,
            "parameters": parameters,
            "trained_sha256": digest,
            "merged_logits": None if difference is None else asdict(difference),
            "continuations": texts,
        },
        "timings": {
            "training_s": history.seconds,
            "training_cpu_s": history.cpu_seconds,
            "tokens_per_s": history.tokens / history.seconds,
            "total_s": time.perf_counter() - start,
        },
        "peak_memory_bytes": record.peak_memory(options.device),
        "files": [*list_files(options), "loss.png", "run.json"],
    }
    record.write_json(options.out / "run.json", result)
    prompt = tokenizer.decode(corpus.prompt[0])
    report.show(console, result, prompt, options.out)
    return difference


def load_model(options: Options) -> tuple[nn.Module, Any]:
    """Return the model, as the method wants it, and its tokenizer."""
    check_device(options.device)
    dtype = methods.weights_dtype(options.method, compute_dtype(options))
    return models.load(options.model, options.cache, options.device, dtype)


def load_corpus(options: Options, model: nn.Module, tokenizer: Any) -> text.Corpus:
    """Return the text, checked to fill windows that the model takes."""
    models.check_window(model, options.seq_len)
    return text.load(tokenizer, options.text, options.seq_len)


def fine_tune(
    model: nn.Module,
    parameters: list[nn.Parameter],
    corpus: text.Corpus,
    held_out: Tensor,
    options: Options,
    console: Console,
) -> History:
    """Train `parameters` on the corpus, under a progress bar."""
    if options.grad_checkpointing:
        models.checkpoint(model)
    dtype = compute_dtype(options)
    autocast = None if next(model.parameters()).dtype == dtype else dtype
    trainer = Trainer(model, parameters, options.batch, options.lr, autocast)
    batches = text.shuffled_batches(corpus, options.batch, options.seq_len, options.seed)
    with report.progress(console, options.steps) as display:
        return train(trainer, batches, options.steps, held_out, display)


def main() -> None:
    """Run; end with one line and status 1 where something is wrong that the user can mend."""
    options = parse(__doc__.splitlines()[0])
    with in_one_line("a smaller --batch or --seq-len, --grad-checkpointing"):
        difference = run(options, Console())
        if difference is not None:
            difference.check()


if __name__ == "__main__":
    main()

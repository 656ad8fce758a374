"""What transformers' Trainer and TRL's, which is one, are given and leave behind."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from finetuning.errors import FinetuneError
from finetuning.training import LARGEST_GRADIENT, WARM_UP_SHARE
from transformers import Trainer, TrainerCallback, TrainingArguments

from frameworks import adapters, results

# Trainer writes it when everything else of a checkpoint is there.
COMPLETE = "trainer_state.json"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``TrainingArguments`` and of ``SFTConfig``."""
    return {
        "output_dir": str(options.output),
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "per_device_eval_batch_size": options.batch,
        "learning_rate": options.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(options.steps * WARM_UP_SHARE),
        # Weight decay would pull the factors to zero, not the weight to where it was pretrained.
        "weight_decay": 0.0,
        "max_grad_norm": LARGEST_GRADIENT,
        "bf16": options.dtype.itemsize == 2,
        f"{_checkpointing()}_checkpointing": options.grad_checkpointing,
        f"{_checkpointing()}_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": options.device.type == "cpu",
        "dataloader_pin_memory": options.device.type == "cuda",
        "seed": options.seed,
        "save_steps": options.save_every,
        "eval_strategy": "steps",
        "eval_steps": options.steps,
        "eval_on_start": not options.resume,
        "disable_tqdm": False,
        "logging_steps": 1,
        # As it is, a loss that is no number would be shown as the mean of those before it.
        "logging_nan_inf_filter": False,
        "report_to": "none",
    }


def _checkpointing() -> str:
    """What transformers calls it when activations are computed again: version 5 renamed it."""
    fields = TrainingArguments.__dataclass_fields__
    return "activation" if "activation_checkpointing" in fields else "gradient"


def one_gpu(arguments: Any) -> Any:
    """Have Trainer use one GPU a process; it would put several into ``nn.DataParallel``."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class StopAtNaN(TrainerCallback):
    """Ends a run whose loss is no number."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise FinetuneError(f"the loss became {loss} at step {state.global_step}; lower --lr")


def run(trainer: Trainer, options: argparse.Namespace, checkpoint: Path | None) -> None:
    """Train, or go on from a checkpoint, save the adapter and show the results."""
    trainer.add_callback(StopAtNaN())
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - begin
    if not trainer.is_world_process_zero():
        return
    adapters.save(trainer.model, options)
    history = trainer.state.log_history
    results.finish(
        options,
        losses={row["step"]: float(row["loss"]) for row in history if "loss" in row},
        held_out={row["step"]: row["eval_loss"] for row in history if "eval_loss" in row},
        trainable=trainer.model.get_nb_trainable_parameters()[0],
        seconds=seconds,
        layers=adapters.ways(trainer.model),
    )

"""What examples of language models load: a model that takes the windows, and those of a text."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from finetuning import models, text
from torch import Tensor, nn


def load(options: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Any]:
    """Return model and tokenizer of the options, the model on `device`.

    Raises:
        FinetuneError: no such model, or one without positions for the windows.

    """
    model, tokenizer = models.load(options.model, options.cache, device, options.dtype)
    models.check_window(model, options.seq_len)
    return model, tokenizer


def windows(options: argparse.Namespace, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return ``[count, seq_len]`` token ids to train on, and those held out.

    Raises:
        FinetuneError: a text that cannot be read or is too short.

    """
    corpus = text.load(tokenizer, options.text, options.seq_len)
    held_out = text.held_out_windows(corpus, options.held_out * options.seq_len, options.seq_len)
    return corpus.train.unfold(0, options.seq_len, options.seq_len), held_out

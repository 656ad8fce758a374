"""Text from the model, so that the difference can be read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NEW_TOKENS = 40


@torch.no_grad()
def continuation(model: nn.Module, tokenizer: Any, prompt: Tensor) -> str:
    """Return what `model` writes after ``prompt [1, tokens]``, taking the likeliest token."""
    model.eval()
    prompt = prompt.to(next(model.parameters()).device)
    ids = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    text: str = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
    return text

"""A small diffusion transformer of diffusers: its loss, its training from scratch, its pictures."""

from __future__ import annotations

import time

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from finetuning.report import Display
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from frameworks import pictures

# Adapted by GraLoRA; Stable Diffusion's UNet has the same names.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
BASE_BATCH = 32
BASE_LR = 2e-3
_SAMPLING_STEPS = 25


def make() -> DiTTransformer2DModel:
    """A random DiT of six layers, 64 wide, for pictures of one channel and three classes."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        num_layers=6,
        sample_size=pictures.SIZE,
        patch_size=4,
        num_embeds_ada_norm=len(pictures.SHAPES),
    )


def noise_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean square error of the predicted noise, at random steps of DDPM.

    Args:
        model: called as diffusers' DiT is.
        batch: ``pixels [count, 1, height, width]``, ``labels [count]``; what
            :func:`with_noise` adds is drawn where it is missing.

    """
    if "noise" not in batch:
        batch = with_noise(batch)
    scheduler = DDPMScheduler()
    noisy = scheduler.add_noise(batch["pixels"], batch["noise"], batch["timesteps"])
    found = model(noisy, timestep=batch["timesteps"], class_labels=batch["labels"]).sample
    return mse_loss(found.float(), batch["noise"])


def with_noise(
    batch: dict[str, Tensor], generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Add ``noise`` of the pictures' shape and ``timesteps [count]``."""
    pixels = batch["pixels"]
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device)
    steps = torch.randint(1000, (len(pixels),), generator=generator, device=pixels.device)
    return {**batch, "noise": noise, "timesteps": steps}


def train_from_scratch(
    model: nn.Module, steps: int, device: torch.device, seed: int, display: Display
) -> None:
    """Train every parameter on outlines of shapes, in place: the model that is then adapted."""
    columns = pictures.draw("outline", steps * BASE_BATCH, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR, weight_decay=0.0)
    model.to(device).train()
    for step in range(steps):
        begin = time.perf_counter()
        rows = slice(step * BASE_BATCH, (step + 1) * BASE_BATCH)
        for group in optimizer.param_groups:
            group["lr"] = BASE_LR * min(1.0, 2 * (1 - step / steps))
        loss = noise_loss(model, {n: column[rows].to(device) for n, column in columns.items()})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        display(step + 1, loss.item(), BASE_BATCH / (time.perf_counter() - begin))


@torch.no_grad()
def sample(model: nn.Module, count: int, device: torch.device, seed: int) -> Tensor:
    """Return pictures ``[count, 1, SIZE, SIZE]`` of the shapes in turn, by 25 steps of DDIM."""
    model.eval()
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(_SAMPLING_STEPS)
    generator = torch.Generator().manual_seed(seed)
    size = (count, 1, pictures.SIZE, pictures.SIZE)
    pixels = torch.randn(size, generator=generator).to(device)
    labels = torch.arange(count, device=device) % len(pictures.SHAPES)
    for step in scheduler.timesteps:
        steps = step.to(device).expand(count)
        noise = model(pixels, timestep=steps, class_labels=labels).sample
        pixels = scheduler.step(noise, step, pixels).prev_sample
    return pixels

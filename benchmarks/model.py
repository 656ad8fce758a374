"""Suite ``model``: training steps of an adapted decoder, its peers and the frozen model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from decoders import DECODERS, build_decoder
from model_variants import ModelVariant, build
from torch import Tensor
from torch.optim import Optimizer

from gralora.bench.agreement import relative_error
from gralora.bench.case import DTYPES, UnavailableError
from gralora.bench.disturbance import CpuWatch
from gralora.bench.harness import EagerTimer, Timer, interleave, random_tensor, ratio_spread, spread
from gralora.bench.memory import peak_bytes, saved_bytes
from gralora.bench.suite import Context, Record

REFERENCES = ("frozen", "peft_gralora")

# Rounding in every layer of a decoder adds up; a wrong block is an error of one and more.
_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
_AGREEMENT_TOKENS = 64


@dataclass(frozen=True)
class ModelCase:
    """A decoder, its adapters and one step: ``tokens`` in sequences of ``sequence``."""

    model: str
    layers: int
    tokens: int
    sequence: int
    checkpointing: bool
    rank: int
    grid: int
    dtype: str

    @property
    def text(self) -> str:
        """One line for people."""
        checkpointing = ", gradient checkpointing" if self.checkpointing else ""
        return (
            f"{self.model}, {self.layers} layers, T {self.tokens}{checkpointing}, r {self.rank}, "
            f"k {self.grid}, {self.dtype}"
        )


@dataclass(frozen=True)
class Settings:
    """How the cases are run; ``optimizer`` adds a pass that ends with a step of AdamW."""

    variants: Sequence[str]
    optimizer: bool


@dataclass(frozen=True)
class _Batch:
    """Embeddings and the gradient of the hidden states, ``[batch, sequence, hidden]``."""

    embeddings: Tensor
    gradient: Tensor


def run_model(cases: Sequence[ModelCase], settings: Settings, context: Context) -> Record:
    """Measure all cases, which are of one decoder and one adapter shape each in turn."""
    record: Record = {"timings": [], "memory": [], "agreement": [], "skipped": []}
    built: tuple[object, list[ModelVariant]] = (None, [])
    for case in cases:
        key = (case.model, case.layers, case.rank, case.grid, case.dtype)
        if built[0] != key:
            # The weights of the decoder before must be gone before new ones are made.
            built = (None, [])
            built = (key, _build(case, settings, context.device, record))
        _run_case(case, built[1], settings, context, record)
        context.save(record)
    return record


def _build(
    case: ModelCase, settings: Settings, device: torch.device, record: Record
) -> list[ModelVariant]:
    dtype = DTYPES[case.dtype]
    base = build_decoder(case.model, case.layers, dtype, device)
    embeddings = random_tensor(
        1, _AGREEMENT_TOKENS, DECODERS[case.model].hidden, dtype=dtype, device=device
    )
    variants: list[ModelVariant] = []
    expected: Tensor | None = None
    for name in settings.variants:
        try:
            variant = build(name, base, case.rank, case.grid, dtype)
        except UnavailableError as reason:
            record["skipped"].append({"case": asdict(case), "variant": name, "reason": str(reason)})
            continue
        if variant.is_gralora:
            with torch.no_grad():
                found = _forward(variant, embeddings)
            expected = found if expected is None else expected
            error = relative_error(found, expected.double())
            record["agreement"].append(
                {"case": asdict(case), "variant": name, "errors": {"hidden": error}}
            )
            if not error <= _TOLERANCE[case.dtype]:
                reason = f"disagrees with the others, relative error {error}"
                record["skipped"].append({"case": asdict(case), "variant": name, "reason": reason})
                continue
        variants.append(variant)
    return variants


def _run_case(
    case: ModelCase,
    variants: Sequence[ModelVariant],
    settings: Settings,
    context: Context,
    record: Record,
) -> None:
    for variant in variants:
        _switch_checkpointing(variant, case.checkpointing)
    batch = _draw_batch(case, context.device)
    for variant in variants:
        record["memory"].append(_memory_record(case, variant, batch, context.device))
    for pass_name in ("step", "step, optimizer") if settings.optimizer else ("step",):
        timers: dict[str, Timer] = {}
        for variant in variants:
            optimizer = _optimizer(variant) if pass_name != "step" else None
            call = functools.partial(_step, variant, batch, optimizer)
            timers[variant.name] = EagerTimer([call], context.device)
        label = f"{case.text}, {pass_name}"
        rounds = interleave(
            timers,
            context.rounds,
            watch=CpuWatch() if context.device.type == "cpu" else None,
            on_round=functools.partial(_report, context, label),
        )
        for variant in variants:
            record["timings"].append(
                {
                    "case": asdict(case),
                    "variant": variant.name,
                    "mode": "eager",
                    "pass": pass_name,
                    **_figures(case, variant.name, rounds.samples),
                    "others_cpu_share": rounds.others,
                    "rounds_discarded": rounds.discarded,
                }
            )


def _figures(case: ModelCase, name: str, samples: dict[str, list[float]]) -> dict[str, Any]:
    own = samples[name]
    seconds = spread(own)
    return {
        "seconds": seconds.as_dict(),
        "tokens_per_s": case.tokens / seconds.median,
        "ratio": {
            reference: ratio_spread(own, samples[reference])
            for reference in REFERENCES
            if reference in samples
        },
        "samples": own,
    }


def _report(context: Context, label: str, taken: int) -> None:
    context.on_progress(label, taken, context.rounds)


def _draw_batch(case: ModelCase, device: torch.device) -> _Batch:
    shape = (case.tokens // case.sequence, case.sequence, DECODERS[case.model].hidden)
    dtype = DTYPES[case.dtype]
    return _Batch(
        embeddings=random_tensor(*shape, dtype=dtype, device=device).requires_grad_(),
        gradient=random_tensor(*shape, dtype=dtype, device=device),
    )


def _forward(variant: ModelVariant, embeddings: Tensor) -> Tensor:
    device = embeddings.device.type
    with torch.autocast(device, dtype=variant.autocast, enabled=variant.autocast is not None):
        hidden: Tensor = variant.model(inputs_embeds=embeddings).last_hidden_state
    return hidden


def _step(variant: ModelVariant, batch: _Batch, optimizer: Optimizer | None = None) -> None:
    """Forward, and backward to the embeddings and the adapters; gradients are dropped at the end.

    So nothing is accumulated, and autograd hands over the gradients that it made.
    """
    hidden = _forward(variant, batch.embeddings)
    hidden.backward(batch.gradient.to(hidden.dtype))
    if optimizer is not None:
        optimizer.step()
    batch.embeddings.grad = None
    for parameter in variant.parameters:
        parameter.grad = None


def _optimizer(variant: ModelVariant) -> Optimizer | None:
    """AdamW as Trainer sets it up; nothing for the frozen model. No rate: the factors stay."""
    if not variant.parameters:
        return None
    fused = variant.parameters[0].device.type == "cuda"
    return torch.optim.AdamW(variant.parameters, lr=0.0, weight_decay=0.0, fused=fused)


def _switch_checkpointing(variant: ModelVariant, wanted: bool) -> None:
    # The older name of transformers' methods still works in its version 5, with a warning.
    kind = (
        "activation" if hasattr(variant.decoder, "activation_checkpointing_enable") else "gradient"
    )
    if wanted:
        switch = getattr(variant.decoder, f"{kind}_checkpointing_enable")
        switch({"use_reentrant": False})
    else:
        getattr(variant.decoder, f"{kind}_checkpointing_disable")()


def _memory_record(
    case: ModelCase, variant: ModelVariant, batch: _Batch, device: torch.device
) -> dict[str, Any]:
    """What lives between forward and backward, and on a GPU the peak of a step."""
    record: dict[str, Any] = {
        "case": asdict(case),
        "variant": variant.name,
        "adapter_parameters": sum(p.numel() for p in variant.parameters),
        "activation_bytes": None,
        "peak_bytes": None,
    }
    if device.type == "cuda":
        record["peak_bytes"] = peak_bytes(lambda: _step(variant, batch), device)
        before = torch.cuda.memory_allocated(device)
        hidden = _forward(variant, batch.embeddings)
        record["activation_bytes"] = torch.cuda.memory_allocated(device) - before
        del hidden
    elif not case.checkpointing:
        # Checkpoints keep their inputs outside of what autograd saves.
        existing = [*variant.model.parameters(), *variant.model.buffers()]
        record["activation_bytes"] = saved_bytes(
            lambda: _forward(variant, batch.embeddings), existing
        )
    return record

"""What the options of a command line may be; each function takes the text and returns the value."""

from __future__ import annotations

import argparse

import torch


def positive(text: str) -> int:
    return at_least(1, text)


def window(text: str) -> int:
    return at_least(2, text)


def seed(text: str) -> int:
    return _seed(text, bits=63)


def numpy_seed(text: str) -> int:
    return _seed(text, bits=32)


def at_least(least: int, text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else None
    if value is None or value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text!r}")
    return value


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def grid(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def device(text: str) -> torch.device:
    try:
        value = torch.device(text)
    except RuntimeError:
        value = None
    if value is None or value.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    return value


def _seed(text: str, bits: int) -> int:
    value = at_least(0, text)
    if value >= 1 << bits:
        raise argparse.ArgumentTypeError(f"must be below 2**{bits}, got {text}")
    return value

"""Adapters on disk and as state dicts, in PEFT's format."""

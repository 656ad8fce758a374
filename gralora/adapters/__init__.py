"""Adapters on disk as things of their own: read, written and changed without a model."""

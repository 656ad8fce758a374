"""Attaching adapters to whole models."""

"""The parts of ``finetune.py``, one file each; that script shows the order in which they act."""

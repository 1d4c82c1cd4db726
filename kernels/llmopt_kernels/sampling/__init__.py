"""Sampling from logits on a GPU; `reference.py` has the definition."""

"""Rejection sampling of drafts on a GPU; `reference.py` has the definition."""

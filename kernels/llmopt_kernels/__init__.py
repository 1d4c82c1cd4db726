"""Kernels of the llmopt runtime: in each folder a `reference.py` that defines it, and faster
versions.

Imports torch only. Functions take plain tensors; nothing here knows a model, a file or an engine.

Shape legend: T tokens, B requests, H query heads, KH key/value heads, D head dim, N blocks, S block
size, K in-features, O out-features, G groups.
"""

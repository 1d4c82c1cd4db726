"""Causal attention over a paged cache: the version for the device at hand."""

from llmopt_kernels.paged_attention.grouped import paged_attention_grouped as paged_attention
from llmopt_kernels.paged_attention.metadata import AttentionMetadata

__all__ = ["AttentionMetadata", "paged_attention"]

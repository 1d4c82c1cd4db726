"""Writing new keys and values into the paged cache, and reading them back."""

from llmopt_kernels.store_kv.cache import Int8Cache, KVCache, cache_tensors, gather_kv
from llmopt_kernels.store_kv.cache import store_rows as store_kv

__all__ = ["Int8Cache", "KVCache", "cache_tensors", "gather_kv", "store_kv"]

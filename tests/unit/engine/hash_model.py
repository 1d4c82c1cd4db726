"""A model whose next token is a hash of every token that it can see in the cache.

It stores tokens as keys and values and finds them through block tables, slots and lengths where
Triton's kernels would: in the device's tensors, never in what the host knows. A token that is lost,
read too early, or from a block of another request changes everything after it.
"""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from llmopt.models.config import ModelConfig
from llmopt.models.decoder import KVTensors
from llmopt_kernels.paged_attention import AttentionMetadata

VOCAB_SIZE = 24
EOS = 1
_CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
)


class HashModel:
    config = _CONFIG
    device = torch.device("cpu")
    dtype = torch.float32

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        metadata: AttentionMetadata,
        kv_cache: KVTensors | None = None,
    ) -> Tensor:
        assert kv_cache is not None
        assert int(input_ids.min()) >= 0, "a token that is not known was computed"
        seen = [[] for _ in input_ids]
        for layer, (keys, values) in enumerate(kv_cache):
            own = metadata.of_layer(layer)
            flat = keys.flatten(0, 1)[:, 0]  # [N * S, D]
            flat[own.slot_mapping, 0] = input_ids.float()
            flat[own.slot_mapping, 1] = positions.float()
            values.flatten(0, 1)[:, 0, 0][own.slot_mapping] = input_ids.float()
            self._see(flat.numpy(), own, seen)
        hashes = [crc32(np.array(tokens, dtype=np.int64).tobytes()) for tokens in seen]
        return torch.tensor(hashes, dtype=torch.float64)[:, None]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Pseudo-random logits, quarters of whole numbers, no two alike."""
        mixed = [
            [crc32(b"%d %d" % (int(one), token)) for token in range(VOCAB_SIZE)]
            for one in hidden[:, 0]
        ]
        return torch.tensor(mixed).argsort().argsort().float() / 4

    def compute_sampling_logits(self, hidden: Tensor) -> Tensor:
        """The same."""
        return self.compute_logits(hidden)

    def _see(self, flat: np.ndarray, own: AttentionMetadata, seen: list[list[int]]) -> None:
        lengths = own.device_lengths(self.device)
        starts, tables = lengths.cu_seqlens_q.tolist(), own.block_tables.tolist()
        for row, length in enumerate(lengths.seq_lens.tolist()):
            if length == 0:  # a row that only pads
                continue
            for token in range(starts[row], starts[row + 1]):
                position = length - (starts[row + 1] - token)
                first = 0 if own.max_window is None else max(0, position - own.max_window + 1)
                for p in range(position + 1):
                    if p >= first or p < own.num_sinks:
                        slot = tables[row][p // own.block_size] * own.block_size
                        stored, at = flat[slot + p % own.block_size, :2]
                        assert at == p, "a slot holds another position"
                        seen[token].append(int(stored))

"""What a checkpoint calls the parts of a decoder.

Knows nothing of tensors. The law: loading and quantizing spell no such name themselves. Llama's are
the default, as most architectures use them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Names of modules; those of a block are below `blocks.INDEX`.

    qkv, gate_up: the matrices that are computed as one layer, one name where they are stored as one
    Names of the MLP contain {expert} in a mixture of experts; `router` exists only there.
    """

    embedding: str = "model.embed_tokens"
    positions: str = ""
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    input_norm: str = "input_layernorm"
    attention_branch_norm: str = "post_attention_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp_branch_norm: str = "post_feedforward_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    query_norm: str = "self_attn.q_norm"
    key_norm: str = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    router: str = ""
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"

    def block(self, index: int) -> str:
        """What the names of a block's modules begin with."""
        return f"{self.blocks}.{index}."


LLAMA_NAMES = ModuleNames()
SANDWICH_NAMES = ModuleNames(mlp_norm="pre_feedforward_layernorm")  # norms around each branch
PHI3_NAMES = ModuleNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))
OPT_NAMES = ModuleNames(
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    blocks="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    input_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    output="self_attn.out_proj",
    gate_up=("fc1",),
    down="fc2",
)
GPT2_NAMES = ModuleNames(
    embedding="transformer.wte",
    positions="transformer.wpe",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    input_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    output="attn.c_proj",
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
)
QWEN_MOE_NAMES = ModuleNames(
    router="mlp.gate",
    gate_up=("mlp.experts.{expert}.gate_proj", "mlp.experts.{expert}.up_proj"),
    down="mlp.experts.{expert}.down_proj",
)
MIXTRAL_NAMES = ModuleNames(
    router="block_sparse_moe.gate",
    gate_up=("block_sparse_moe.experts.{expert}.w1", "block_sparse_moe.experts.{expert}.w3"),
    down="block_sparse_moe.experts.{expert}.w2",
)

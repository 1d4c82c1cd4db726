"""Whether a request can ever be served, decided before it is queued.

Knows nothing about the queue or the state of the pools.
Law: an admitted request, alone in the pools, runs to its last token.
"""

from llmopt.engine.block_space import BlockSpace, PooledGroup
from llmopt.engine.request import Request
from llmopt.errors import EngineError


def fit_request(request: Request, *, max_model_len: int, blocks: BlockSpace) -> None:
    """Clip `request.max_tokens` to the model's length and check that its blocks exist.

    Raises:
        EngineError: the prompt leaves no room for a new token in the model's length, or prompt and
            new tokens need more blocks than there are.
    """
    num_prompt_tokens = request.num_prompt_tokens
    if num_prompt_tokens >= max_model_len:
        raise EngineError(
            f"the prompt has {num_prompt_tokens} tokens and max_model_len is {max_model_len}",
            f"Shorten it to at most {max_model_len - 1} tokens, or raise max_model_len as far as"
            " the model allows.",
        )
    request.max_tokens = min(request.max_tokens, max_model_len - num_prompt_tokens)
    # The last new token is never computed, so it needs no slot.
    num_tokens = num_prompt_tokens + request.max_tokens - 1
    for group in blocks.groups:
        needed = blocks.max_held_blocks(group, num_tokens)
        if needed > group.pool.num_blocks:
            raise _too_large(request, group, needed, blocks.block_size)


def _too_large(request: Request, group: PooledGroup, needed: int, block_size: int) -> EngineError:
    num_prompt_tokens, num_blocks = request.num_prompt_tokens, group.pool.num_blocks
    num_slots = num_blocks * block_size
    if group.layers.window is not None:
        fitting = "Give a smaller max_num_batched_tokens"
    elif num_prompt_tokens <= num_slots:
        fitting = f"Ask for max_tokens of at most {num_slots - num_prompt_tokens + 1}"
    else:
        fitting = f"Shorten the prompt to at most {num_slots} tokens"
    return EngineError(
        f"{num_prompt_tokens} prompt tokens and {request.max_tokens} new ones need {needed} cache"
        f" blocks of {block_size} tokens, and there are {num_blocks}",
        f"{fitting}, or raise num_blocks to {needed} (or kv_memory_bytes to match).",
    )

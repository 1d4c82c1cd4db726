"""From a `SpeculationConfig` to a speculator for a model.

Knows nothing about requests or steps.
Law: the caches of a model and of its draft model together take what the model's alone would.
"""

from dataclasses import replace

from llmopt.engine.config import EngineConfig
from llmopt.engine.kv_cache import choose_layout, free_bytes
from llmopt.engine.kv_plan import plan_kv
from llmopt.engine.model_runner import DecoderModel
from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.engine.speculation.draft_model import DraftModel
from llmopt.engine.speculation.ngram import NgramProposer
from llmopt.engine.speculation.proposer import Proposer
from llmopt.engine.speculation.self_draft import first_layers, quantize_copy
from llmopt.engine.speculation.speculator import Speculator
from llmopt.engine.speculation.synthetic import SyntheticProposer
from llmopt.errors import UsageError
from llmopt.models.decoder import Decoder
from llmopt.models.loader import load_model
from llmopt.models.resolve import resolve_model

_MAX_PADDING = 1024  # rows without a token at the end of an embedding


def make_speculator(
    model: DecoderModel, config: EngineConfig
) -> tuple[Speculator | None, EngineConfig]:
    """The speculator that the config asks for, and the config that is left for the model.

    Raises:
        UsageError: the draft model has another vocabulary, or cannot be made of this model.
        ModelError, CheckpointError: the draft model cannot be found or loaded.
        EngineError: its cache does not fit in memory.
    """
    speculation = config.speculation
    if speculation is None or speculation.num_draft_tokens == 0:
        return None, config
    kind, _ = speculation.parse()
    if kind == "ngram":
        ngram = NgramProposer(speculation.min_ngram, speculation.max_ngram)
        return _speculator(ngram, speculation), config
    draft = _draft_model(model, speculation)
    own, for_draft = _share_memory(model, draft, config)
    plan = plan_kv(draft.config, for_draft, draft.dtype, draft.device)
    proposer = DraftModel(
        draft,
        plan,
        max_chunk=config.max_num_batched_tokens,
        vocab_size=model.config.vocab_size,
        sampling=speculation.draft_sampling,
    )
    return _speculator(proposer, speculation), own


def _speculator(proposer: Proposer, speculation: SpeculationConfig) -> Speculator:
    if speculation.synthetic_acceptance is not None:
        proposer = SyntheticProposer(proposer, speculation.synthetic_acceptance)
    return Speculator(
        proposer,
        max_draft_tokens=speculation.num_draft_tokens,
        adaptive=speculation.adaptive,
    )


def _draft_model(model: DecoderModel, speculation: SpeculationConfig) -> Decoder:
    kind, argument = speculation.parse()
    if kind == "draft":
        dtype = str(model.dtype).removeprefix("torch.")
        draft = load_model(resolve_model(argument), dtype=dtype, device=str(model.device))
        _check_vocabulary_sizes(model.config.vocab_size, draft.config.vocab_size, argument)
        return draft
    if not isinstance(model, Decoder):
        raise UsageError(
            f"speculation is {speculation.proposer!r} and the model is not made of layers",
            "Use ngram or draft:MODEL.",
        )
    if kind == "layers":
        return first_layers(model, int(argument))
    return quantize_copy(model, int(argument))


def _check_vocabulary_sizes(target: int, draft: int, name: str) -> None:
    """Sizes of one vocabulary differ by the padding of the embedding, if at all."""
    if abs(target - draft) > _MAX_PADDING:
        raise UsageError(
            f"the model knows {target} tokens and the draft model {name} knows {draft}",
            "Draft with a model of the same family, whose tokens are the same.",
        )


def _share_memory(
    model: DecoderModel, draft: Decoder, config: EngineConfig
) -> tuple[EngineConfig, EngineConfig]:
    """The configs of the model's cache and of the draft's, so that both hold as many tokens."""
    for_draft = replace(config, preemption="recompute", policy="fcfs", speculation=None)
    limit = min(config.max_model_len or model.config.max_model_len, draft.config.max_model_len)
    for_draft = replace(for_draft, max_model_len=limit)
    if config.num_blocks is not None:
        return config, for_draft
    total = config.kv_memory_bytes or free_bytes(model.device)
    own_bytes, draft_bytes = _block_bytes(model, config), _block_bytes(draft, config)
    share = total * draft_bytes // (own_bytes + draft_bytes)
    return (
        replace(config, kv_memory_bytes=total - share),
        replace(for_draft, kv_memory_bytes=share),
    )


def _block_bytes(model: DecoderModel, config: EngineConfig) -> int:
    layout = choose_layout(model.config, config.block_size, config.kv_dtype, model.dtype)
    return model.config.num_layers * layout.block_bytes

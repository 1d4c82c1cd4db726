"""One part of a target model put into its base: which parts there are, and what the base then says.

Knows nothing about statistics. The law it keeps: everything but the part runs in the base, in the
base's dtype, on the hidden states that the base itself computed up to there; so the base with a
part that equals its own gives the base's logits to the last bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import UsageError
from llmopt.models.config import ModelConfig
from llmopt.models.decoder import Decoder
from llmopt.quality.atlas_report import PartKind
from llmopt.quality.source import rows_per_chunk
from llmopt.quality.windows import Window
from llmopt_kernels.paged_attention.metadata import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a decoder; `layer` says of which block, None outside the blocks."""

    kind: PartKind
    layer: int | None = None

    @property
    def label(self) -> str:
        """What a reader calls it: "block 3", "block 3 MLP", "head"."""
        if self.layer is None:
            return self.kind
        half = {"attention": " attention", "mlp": " MLP"}.get(self.kind, "")
        return f"block {self.layer}{half}"


def list_parts(num_layers: int, *, detail: bool) -> tuple[Part, ...]:
    """All parts, from the input to the output; with `detail` also the halves of each block."""
    kinds: tuple[PartKind, ...] = ("block", "attention", "mlp") if detail else ("block",)
    blocks = [Part(kind, layer) for layer in range(num_layers) for kind in kinds]
    return (Part("embedding"), *blocks, Part("final norm"), Part("head"))


def check_same_shape(target: ModelConfig, base: ModelConfig) -> None:
    """Raise UsageError when parts of one model do not fit into the other."""
    sizes = ("architecture", "num_layers", "hidden_size", "vocab_size")
    for name in sizes:
        of_target, of_base = getattr(target, name), getattr(base, name)
        if of_target != of_base:
            raise UsageError(
                f"the model has {name} {of_target} and its base {of_base}, so that parts of one do"
                " not fit into the other",
                "Compare a model with the one that it was made from.",
            )


class Transplant:
    """The base on one window, with any one part of the target put into it.

    Holds the base's hidden states at the input of every block and behind the last: L + 1 tensors
    [n, C] for L blocks. Putting in a part of block b then costs the L - b blocks from there on. A
    last token beyond the models' limit is not read.
    """

    def __init__(self, target: Decoder, base: Decoder, window: Window) -> None:
        limit = min(target.config.max_model_len, base.config.max_model_len)
        self.target = target
        self.base = base
        self.num_scored = window.num_scored
        self.last = len(window.token_ids) - 1
        self.token_ids = window.token_ids[:limit].to(base.device)
        self.positions = torch.arange(len(self.token_ids), device=base.device)
        self.metadata = AttentionMetadata.dense([len(self.token_ids)])
        with torch.inference_mode():
            self.rotary = base.rotary(self.positions)
            self.target_rotary = target.rotary(self.positions)
            self.states = [base.embed(self.token_ids, self.positions)]
            for block in base.blocks:
                hidden = block.forward(self.states[-1], self.rotary, self.metadata, None)
                self.states.append(hidden)

    def base_chunks(self) -> Iterator[Tensor]:
        """The base's own logits, in chunks as `LogitSource.chunks` gives them."""
        return self._logits(self.states[-1], Part("block"))

    def chunks(self, part: Part) -> Iterator[Tensor] | None:
        """Logits of the base with `part` of the target, in chunks as `LogitSource.chunks` gives.

        None: the part's output equals the base's own to the last bit, and so would all logits.
        """
        if part.kind in ("final norm", "head"):
            return self._logits(self.states[-1], part)
        with torch.inference_mode():
            hidden, next_block = self._replace(part)
            if torch.equal(hidden, self.states[next_block]):
                return None
            for block in self.base.blocks[next_block:]:
                hidden = block.forward(hidden, self.rotary, self.metadata, None)
        return self._logits(hidden, part)

    def _replace(self, part: Part) -> tuple[Tensor, int]:
        """Hidden states [n, C] behind the replaced part's block, and the block that comes next."""
        if part.kind == "embedding":
            rows = self.target.embed(self.token_ids, self.positions)
            return rows.to(self.base.dtype), 0
        assert part.layer is not None, f"{part.kind} has a layer"
        hidden = self.states[part.layer]
        own, new = self.base.blocks[part.layer], self.target.blocks[part.layer]
        if part.kind == "mlp":
            hidden = own.attend(hidden, self.rotary, self.metadata, None)
            hidden = new.feed_forward(hidden.to(self.target.dtype)).to(self.base.dtype)
            return hidden, part.layer + 1
        hidden = hidden.to(self.target.dtype)
        if part.kind == "attention":
            hidden = new.attend(hidden, self.target_rotary, self.metadata, None)
            hidden = own.feed_forward(hidden.to(self.base.dtype))
        else:
            hidden = new.forward(hidden, self.target_rotary, self.metadata, None)
        return hidden.to(self.base.dtype), part.layer + 1

    def _logits(self, hidden: Tensor, part: Part) -> Iterator[Tensor]:
        """Logits of the rows of `hidden` [n, C] that have a scored token next."""
        norm_of = self.target if part.kind == "final norm" else self.base
        head_of = self.target if part.kind == "head" else self.base
        scored = hidden[self.last - self.num_scored : self.last]
        cap = self.base.config.logit_soft_cap
        for rows in torch.split(scored, rows_per_chunk(self.base.config.vocab_size)):
            with torch.inference_mode():
                normed = norm_of.final_norm(rows.to(norm_of.dtype)).to(head_of.dtype)
                logits = head_of.lm_head(normed)
                logits = logits if cap is None else (logits / cap).tanh() * cap
            yield logits

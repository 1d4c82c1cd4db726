"""Calibration tokens on their way through one decoder block after the other.

Hidden states live in host memory; whole windows go through the compute device in chunks. Knows the
parts of a decoder block; knows nothing of statistics, methods or files.
Law: what a chunk computes does not depend on how much is kept in memory.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmopt.models.decoder import DecoderBlock
from llmopt.models.loader import ModelLoader
from llmopt.quantize.awq_scaling import PassThrough, Sequences
from llmopt.quantize.folding import dense_mlp
from llmopt.quantize.layout import Place
from llmopt_kernels.paged_attention import AttentionMetadata

Inputs = Callable[[], Iterator[Tensor]]  # of a layer, chunk by chunk on the compute device

CHUNK_TOKENS = 4096
KEEP_BYTES = 4 << 30  # what may wait in host memory for a layer to be quantized; else recomputed


class BlockStream:
    """The way of all calibration tokens, `windows` of `window_tokens` each, through the blocks."""

    def __init__(self, loader: ModelLoader, windows: int, window_tokens: int) -> None:
        self._loader = loader
        self._window_tokens = window_tokens
        per_chunk = max(1, CHUNK_TOKENS // window_tokens)
        counts = [min(per_chunk, windows - start) for start in range(0, windows, per_chunk)]
        self._structures = {count: self.sequences(count) for count in set(counts)}
        self._counts = counts
        self.num_tokens = windows * window_tokens

    def sequences(self, windows: int) -> Sequences:
        """Return the structure of a batch of so many windows."""
        length = self._window_tokens
        rotary = self._loader.rotary(torch.arange(length).repeat(windows))
        return Sequences(rotary, AttentionMetadata.dense((length,) * windows))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the hidden states [T, C], in host memory, of tokens [windows, length]."""
        chunks = [chunk for chunk, _ in self._chunks(tokens.flatten())]
        window = torch.arange(self._window_tokens)
        return torch.cat(
            [self._loader.embed(c, window.repeat(len(c) // len(window))).cpu() for c in chunks]
        )

    def walk(self, block: DecoderBlock, hidden: Tensor) -> Iterator[tuple[Place, Inputs]]:
        """Move `hidden` [T, C] through a block, in place.

        Stops just before each linear layer would run and yields its place and its inputs. The
        caller may replace the layer then; at the first layer of the attention or the MLP also the
        norm before and the layer after it.
        """
        attention, mlp = block.attention, dense_mlp(block)
        yield Place.QKV, lambda: self.normed(block.input_norm, hidden)
        attended = self._keep(lambda: self._attended(block, hidden), attention.output.in_features)
        yield Place.OUTPUT, attended
        self._add(hidden, attended, lambda x: block.attention_branch_norm(attention.output(x)))
        yield Place.GATE_UP, lambda: self.normed(block.post_norm, hidden)
        gated = self._keep(lambda: self._gated(block, hidden), mlp.down.in_features)
        yield Place.DOWN, gated
        self._add(hidden, gated, lambda x: block.mlp_branch_norm(mlp.down(x)))

    def _chunks(self, rows: Tensor) -> Iterator[tuple[Tensor, Sequences]]:
        """Cut rows of all tokens into views, each with the structure of its windows."""
        sizes = [count * self._window_tokens for count in self._counts]
        for chunk, count in zip(torch.split(rows, sizes), self._counts, strict=True):
            yield chunk, self._structures[count]

    def normed(self, norm: Callable[[Tensor], Tensor], hidden: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states [T, C] behind a norm, chunk by chunk on the compute device."""
        for chunk, _ in self._chunks(hidden):
            yield norm(chunk.to(self._loader.device))

    def _attended(self, block: DecoderBlock, hidden: Tensor) -> Iterator[Tensor]:
        attention = block.attention
        for chunk, sequences in self._chunks(hidden):
            x, output = block.input_norm(chunk.to(self._loader.device)), attention.output
            attention.output = PassThrough(output.in_features)
            attended = attention.forward(x, sequences.rotary, sequences.metadata, None)
            attention.output = output
            yield attended

    def _gated(self, block: DecoderBlock, hidden: Tensor) -> Iterator[Tensor]:
        mlp = dense_mlp(block)
        for x in self.normed(block.post_norm, hidden):
            down = mlp.down
            mlp.down = PassThrough(down.in_features)
            gated = mlp.forward(x)
            mlp.down = down
            yield gated

    def _add(self, hidden: Tensor, inputs: Inputs, branch: Callable[[Tensor], Tensor]) -> None:
        for (chunk, _), x in zip(self._chunks(hidden), inputs(), strict=True):
            chunk += branch(x).to(chunk.device)

    def _keep(self, inputs: Inputs, features: int) -> Inputs:
        """Compute inputs once and for all, if they fit in host memory."""
        if self.num_tokens * features * torch.float32.itemsize > KEEP_BYTES:
            return inputs
        kept = [chunk.cpu() for chunk in inputs()]
        return lambda: (chunk.to(self._loader.device) for chunk in kept)

"""The ways to cut a text into windows, each as its publication has it.

Knows nothing about files, models or statistics. The law it keeps: what is scored is what the
protocol's own tool scores, token for token; where this departs from the tool, the function says
so. Perplexities of two protocols are never comparable.
"""

from collections.abc import Callable
from typing import Final

from llmopt.data import wikitext
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.cut import (
    Cut,
    count_windows,
    leading_bos,
    make_window,
    span_bytes,
    which_windows,
)
from llmopt.quality.evaluation_text import EvaluationText
from llmopt.quality.options import QualityOptions
from llmopt.quality.rolling import cut_rolling
from llmopt.quality.windows import ProtocolName

Protocol = Callable[[EvaluationText, Tokenizer, QualityOptions], Cut]


def cut_windows(text: EvaluationText, tokenizer: Tokenizer, options: QualityOptions) -> Cut:
    """llmopt's own protocol: windows that do not overlap, every next token scored.

    A tokenizer that starts every sequence with BOS gets it at the start of every window, which
    then holds `window - 1` tokens of the text. Raises UsageError: too little text.
    """
    size, bos = options.window_size, leading_bos(tokenizer)
    token_ids, ends = tokenizer.encode_with_ends(text.content, add_special_tokens=False)
    prefix = [] if bos is None else [bos]
    stride = size - len(prefix)
    count = count_windows(len(token_ids), stride, text.name, options)
    windows = []
    for start in range(0, count * stride, stride):
        stop = start + stride
        num_bytes = span_bytes(ends, stop - size + 1, stop)
        windows.append(make_window([*prefix, *token_ids[start:stop]], size - 1, num_bytes))
    description = (
        f"windows of {size} tokens, not overlapping, {'BOS first in each' if prefix else 'no BOS'},"
        f" all {size - 1} next-token positions scored, {which_windows(count, options)}"
    )
    return Cut(tuple(windows), description)


def cut_paper(text: EvaluationText, tokenizer: Tokenizer, options: QualityOptions) -> Cut:
    """GPTQ's protocol (Frantar et al. 2023), in which papers report WikiText-2 perplexity.

    The data set's rows, joined by two newlines and tokenized at once with the tokenizer's default
    special tokens, are cut into windows that do not overlap; the remainder is dropped, and all but
    the first token of each window are scored. Raw WikiText, told by its shape, is read as the
    hub's rows; another text has none and is taken as it is. Raises UsageError: too little text.
    """
    size, content, source = options.window_size, text.content, "the text as it is"
    if wikitext.is_wikitext(content):
        rows = wikitext.rows(content)
        content, source = "\n\n".join(rows), f"{len(rows)} rows of WikiText joined by blank lines"
    token_ids, ends = tokenizer.encode_with_ends(content)
    count = count_windows(len(token_ids), size, text.name, options)
    windows = []
    for start in range(0, count * size, size):
        stop = start + size
        num_bytes = span_bytes(ends, start + 1, stop)
        windows.append(make_window(token_ids[start:stop], size - 1, num_bytes))
    description = (
        f"as GPTQ: {source}, tokenized at once with the tokenizer's special tokens, windows of"
        f" {size} tokens, not overlapping, all {size - 1} next-token positions scored,"
        f" {which_windows(count, options)}"
    )
    return Cut(tuple(windows), description)


def cut_llama_cpp(text: EvaluationText, tokenizer: Tokenizer, options: QualityOptions) -> Cut:
    """The protocol of llama.cpp's `llama-perplexity` (tools/perplexity/perplexity.cpp).

    The text without its last newline is tokenized with BOS, where the tokenizer puts one, and cut
    into chunks of n that do not overlap. BOS takes the place of each chunk's first token, and the
    rows n // 2 to n - 2 of its logits are scored. The tool wants two chunks at least, as we do.
    Raises UsageError: too little text.
    """
    size, bos = options.window_size, leading_bos(tokenizer)
    content = text.content.removesuffix("\n")
    token_ids, ends = tokenizer.encode_with_ends(content, add_special_tokens=False)
    if bos is not None:
        token_ids, ends = [bos, *token_ids], [0, *ends]
    count = count_windows(len(token_ids), size, text.name, options)
    num_scored = size - 1 - size // 2
    windows = []
    for start in range(0, count * size, size):
        stop = start + size
        first = token_ids[start] if bos is None else bos
        num_bytes = span_bytes(ends, stop - num_scored, stop)
        windows.append(make_window([first, *token_ids[start + 1 : stop]], num_scored, num_bytes))
    description = (
        f"as llama.cpp: windows of {size} tokens, not overlapping,"
        f" {'no BOS' if bos is None else 'BOS in place of the first token of each'},"
        f" last {num_scored} next-token positions scored, {which_windows(count, options)}"
    )
    return Cut(tuple(windows), description)


PROTOCOLS: Final[dict[ProtocolName, Protocol]] = {
    "windows": cut_windows,
    "paper": cut_paper,
    "llama.cpp": cut_llama_cpp,
    "rolling": cut_rolling,
}

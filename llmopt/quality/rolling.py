"""The rolling log-likelihood of lm-evaluation-harness, behind its word perplexity.

Knows nothing about files, models or statistics. The law it keeps: every token of a document is
scored exactly once, and the bytes and words are those of the document as it was published.
"""

from collections.abc import Sequence

from llmopt.data import wikitext
from llmopt.errors import ModelError, UsageError
from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.cut import MIN_WINDOWS, Cut, fewer_windows, make_window
from llmopt.quality.evaluation_text import EvaluationText
from llmopt.quality.options import QualityOptions
from llmopt.quality.windows import Window


def cut_rolling(text: EvaluationText, tokenizer: Tokenizer, options: QualityOptions) -> Cut:
    """The protocol of the harness's task `wikitext` (version 2).

    Documents are the articles of raw WikiText, told by its shape and freed of its tokenization;
    another text is one document and stays as it is. Whole documents are taken, until they give at
    least `num_windows` windows. Word perplexity is exp(-sum of log-probabilities / num_words).

    One departure: special tokens that a tokenizer adds by itself are left out, where the harness
    would score a second BOS after the first. Raises UsageError (too little text) and ModelError
    (a tokenizer with neither BOS nor EOS).
    """
    prefix = _prefix_token(tokenizer)
    is_wikitext = wikitext.is_wikitext(text.content)
    documents = wikitext.pages(text.content) if is_wikitext else [text.content]
    windows: list[Window] = []
    num_taken = num_words = 0
    for document in documents:
        if options.num_windows is not None and len(windows) >= options.num_windows:
            break
        content = wikitext.detokenize(document) if is_wikitext else document
        token_ids = tokenizer.encode(content, add_special_tokens=False)
        windows += roll(token_ids, prefix, options.window_size, len(document.encode()))
        num_words += wikitext.count_words(document)
        num_taken += 1
    _check_count(windows, text.name, options)
    kind = "articles of WikiText, detokenized" if is_wikitext else "document, the text as it is"
    description = (
        f"as lm-evaluation-harness, rolling: first {num_taken} of {len(documents)} {kind}, windows"
        f" of {options.window_size} scored tokens, each token of a document scored once"
    )
    return Cut(tuple(windows), description, num_words)


def roll(token_ids: Sequence[int], prefix: int, max_scored: int, num_bytes: int) -> list[Window]:
    """Windows that score every token of one document once, in order.

    Each full window scores `max_scored` tokens after a single one of context, which is `prefix`
    for the first. A last window that has fewer left to score reads up to `max_scored` tokens all
    the same, so that those it has are predicted from as much context as fits
    (`get_rolling_token_windows` of the harness, with `context_len` 1). The document's `num_bytes`
    are shared out by scored tokens and sum up exactly.
    """
    read = [prefix, *token_ids]
    total = len(token_ids)
    windows = []
    for start in range(0, total, max_scored):
        stop = min(start + max_scored, total)
        share = num_bytes * stop // total - num_bytes * start // total
        windows.append(make_window(read[max(stop - max_scored, 0) : stop + 1], stop - start, share))
    return windows


def _prefix_token(tokenizer: Tokenizer) -> int:
    """What stands before a document: BOS whether or not the tokenizer adds it, else EOS."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise ModelError(
        "the tokenizer has neither BOS nor EOS to put before a document",
        "Choose another protocol, such as windows.",
    )


def _check_count(windows: Sequence[Window], text_name: str, options: QualityOptions) -> None:
    wanted = MIN_WINDOWS if options.num_windows is None else options.num_windows
    if len(windows) < wanted:
        num_tokens = sum(window.num_scored for window in windows)
        raise UsageError(
            f"the text {text_name!r} has {num_tokens} tokens, which give {len(windows)} rolling"
            f" windows of {options.window_size} tokens, not {wanted}",
            f"Ask for {fewer_windows(len(windows))}, or give a longer text.",
        )

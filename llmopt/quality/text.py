"""From the options to evaluation windows: read the text, tokenize it, cut it.

Knows nothing about models or statistics. The law it keeps: the same text, tokenizer and options
always give the same windows.
"""

from llmopt.models.tokenizer import Tokenizer
from llmopt.quality.evaluation_text import read_evaluation_text
from llmopt.quality.options import QualityOptions
from llmopt.quality.protocols import PROTOCOLS
from llmopt.quality.windows import EvaluationWindows


def load_windows(tokenizer: Tokenizer, options: QualityOptions) -> EvaluationWindows:
    """Read the text that the options name and cut it as their protocol has it.

    Raises UsageError when the text cannot be read, is not UTF-8 or is too short, and OutputError
    when a text that was fetched cannot be kept.
    """
    text = read_evaluation_text(options.text)
    cut = PROTOCOLS[options.protocol](text, tokenizer, options)
    return EvaluationWindows(
        windows=cut.windows,
        text_name=text.name,
        text_sha256=text.sha256,
        protocol=options.protocol,
        description=cut.description,
        num_words=cut.num_words,
    )

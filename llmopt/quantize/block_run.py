"""All blocks of a run, one after the other: each is kept in the journal before the next begins.

Knows nothing of methods or of the checkpoints that are made of finished blocks.
Law: after a crash at any moment, the journal says where to go on.
"""

from collections.abc import Mapping

from torch import Tensor

from llmopt.errors import OutputError
from llmopt.quantize.block_work import BlockWork
from llmopt.quantize.journal import Journal
from llmopt.quantize.options import QuantizeObserver

_SOURCE = "source"  # the stream of the unquantized model; the others are named after their schemes


def run_blocks(work: BlockWork, journal: Journal, stop: int, observer: QuantizeObserver) -> None:
    """Quantize the blocks from the first that is not finished up to, without it, `stop`.

    Raises `OutputError` if the journal lacks hidden states that cannot be made again.
    """
    first = journal.finished_blocks
    if first >= stop:
        return
    hidden = _entering(work, journal, first)
    for index in range(first, stop):
        blocks = work.run(index, hidden)
        if index + 1 < work.num_steps:
            _keep_hidden(work, journal, index + 1, hidden)
        journal.write_block(index, blocks)
        observer.block_finished(index, stop)


def _keep_hidden(
    work: BlockWork, journal: Journal, block: int, hidden: Mapping[str, Tensor]
) -> None:
    for scheme, states in hidden.items():
        journal.write_hidden(scheme, block, states)
    source = work.source
    if source is not None and source.hidden is not None and source.block == block:
        journal.write_hidden(_SOURCE, block, source.hidden)


def _entering(work: BlockWork, journal: Journal, block: int) -> dict[str, Tensor]:
    """The hidden states that enter `block`, of each job that has its own."""
    source = work.source
    if source is None:
        return {}
    if block:
        kept = journal.read_hidden(_SOURCE, block)
        if kept is not None:
            source.hidden, source.block = kept, block
    hidden: dict[str, Tensor] = {}
    for label in (each.job.label for each in work.jobs if each.job.has_own_prefix):
        states = journal.read_hidden(label, block) if block else source.embedded()
        if states is None:
            raise OutputError(
                f"{journal.path} lacks the hidden states that enter block {block}",
                "Files were removed from it; add --restart to begin anew.",
            )
        hidden[label] = states
    return hidden

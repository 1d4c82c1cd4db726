from typing import Any

import pytest

from llmopt.engine.speculation.config import SpeculationConfig
from llmopt.errors import UsageError


@pytest.mark.parametrize(
    ("proposer", "parsed"),
    [
        ("ngram", ("ngram", "")),
        ("draft:org/model", ("draft", "org/model")),
        ("draft:C:/models", ("draft", "C:/models")),
        ("self-quantized:4", ("self-quantized", "4")),
        ("layers:12", ("layers", "12")),
    ],
)
def test_the_forms_of_proposers(proposer: str, parsed: tuple[str, str]) -> None:
    assert SpeculationConfig(proposer).parse() == parsed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proposer": "eagle"}, "speculation is 'eagle'. Give ngram, draft:MODEL"),
        ({"proposer": "ngram:3"}, "speculation is 'ngram:3'"),
        ({"proposer": "draft:"}, "speculation is 'draft:'"),
        ({"proposer": "self-quantized:3"}, "speculation is 'self-quantized:3'"),
        ({"proposer": "layers:0"}, "speculation is 'layers:0'"),
        ({"proposer": "layers:x"}, "speculation is 'layers:x'"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1. Give a number from 0 to 32"),
        ({"num_draft_tokens": 33}, "num_draft_tokens is 33"),
        ({"min_ngram": 3, "max_ngram": 2}, "min_ngram is 3 and max_ngram is 2"),
        ({"min_ngram": 0}, "min_ngram is 0"),
        ({"synthetic_acceptance": 1.5}, "synthetic_acceptance is 1.5. Give a number from 0 to 1"),
        ({"draft_sampling": "greedy"}, "draft_sampling is 'greedy'. Give rejection or shared"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SpeculationConfig(**settings)

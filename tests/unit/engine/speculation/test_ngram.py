from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.request import Request
from llmopt.engine.sampling_params import SamplingParams
from llmopt.engine.speculation.ngram import NgramIndex, NgramProposer


def request(tokens: list[int], name: str = "r") -> Request:
    return Request(name, tokens, len(tokens), SamplingParams(), 128, seed=0)


def propose(tokens: list[int], limit: int, lengths: tuple[int, int] = (1, 3)) -> tuple[int, ...]:
    [draft] = NgramProposer(*lengths).propose([request(tokens)], [limit])
    assert draft.probs is None
    return draft.token_ids


def test_the_longest_ngram_wins_over_a_later_shorter_one() -> None:
    tokens = [1, 2, 3, 40, 41, 3, 50, 51, 1, 2, 3]
    assert propose(tokens, 2) == (40, 41)
    assert propose(tokens, 2, (1, 1)) == (50, 51)


def test_the_most_recent_occurrence_wins() -> None:
    assert propose([7, 8, 1, 1, 7, 8, 2, 2, 7, 8], 2) == (2, 2)


def test_nothing_is_proposed_for_new_tokens_or_short_texts() -> None:
    assert propose([1, 2, 3, 4], 5) == ()
    assert propose([1], 5) == ()
    assert propose([1, 2, 9, 2], 5, (2, 3)) == ()


def test_a_continuation_that_reaches_the_end_goes_on_with_itself() -> None:
    assert propose([5, 6, 7, 5, 6, 7, 5, 6], 7) == (7, 5, 6, 7, 5, 6, 7)
    assert propose([4, 4], 3) == (4, 4, 4)


def naive(tokens: list[int], limit: int, shortest: int, longest: int) -> tuple[int, ...]:
    for length in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if len(tokens) > length and tokens[end - length : end] == tokens[-length:]:
                known = tokens[end : end + limit]
                return tuple((known * limit)[:limit])
    return ()


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(1, 2),
    st.integers(0, 2),
    st.lists(st.integers(1, 60), max_size=5),
)
def test_it_finds_what_a_search_finds_however_the_text_grew(
    tokens: list[int], limit: int, shortest: int, more: int, stops: list[int]
) -> None:
    proposer = NgramProposer(shortest, shortest + more)
    for stop in sorted({*stops, len(tokens)}):
        known = tokens[:stop]
        [draft] = proposer.propose([request(list(known))], [limit])
        assert draft.token_ids == naive(known, limit, shortest, shortest + more)


def test_each_token_is_indexed_once() -> None:
    class Counting(list):
        num_reads = 0

        def __getitem__(self, key):
            self.num_reads += 1
            return super().__getitem__(key)

    index, tokens = NgramIndex([3, 2]), Counting(range(500))
    index.extend(tokens)
    tokens.num_reads = 0
    tokens.append(1000)
    index.extend(tokens)
    index.continue_(tokens, 4)
    assert tokens.num_reads <= 4


def test_requests_have_indices_of_their_own_until_they_are_forgotten() -> None:
    proposer = NgramProposer(2, 2)
    drafts = proposer.propose(
        [request([1, 2, 3, 1, 2], "a"), request([1, 2, 9, 1, 2], "b")], [1, 1]
    )
    assert [draft.token_ids for draft in drafts] == [(3,), (9,)]
    proposer.forget("a")
    proposer.forget("unknown")
    [draft] = proposer.propose([request([1, 2, 5, 1, 2], "a")], [1])
    assert draft.token_ids == (5,)

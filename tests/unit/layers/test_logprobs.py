import torch

from llmopt.layers.logprobs import token_logprobs


def test_log_probabilities_ranks_and_the_most_likely_tokens() -> None:
    probs = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    first, second = token_logprobs(probs.log() + 7, [2, 2], [2, 0])
    assert (first.token_id, first.rank) == (2, 2)
    torch.testing.assert_close(first.logprob, float(torch.tensor(0.3).log()), rtol=1e-6, atol=0)
    assert [token_id for token_id, _ in first.top] == [1, 2]
    torch.testing.assert_close(first.top[1][1], first.logprob)
    assert second.rank == 2  # tied with token 1
    assert second.top == ()


def test_more_rows_than_are_computed_at_once_and_more_tokens_than_there_are() -> None:
    logits = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    token_ids = [index % 5 for index in range(300)]
    found = token_logprobs(logits, token_ids, [9] * 300)
    expected = torch.log_softmax(logits.float(), -1)
    assert [one.token_id for one in found] == token_ids
    assert all(len(one.top) == 5 for one in found)
    for index, one in enumerate(found):
        assert one.logprob == float(expected[index, token_ids[index]])
        assert one.logprob == dict(one.top)[one.token_id]
        assert one.rank == 1 + int((expected[index] > expected[index, token_ids[index]]).sum())

from dataclasses import replace

import torch

from llmopt.quality.windows import Window


def test_the_scored_tokens_are_the_last(make_windows):
    window = Window(torch.arange(10), 4, 12)
    assert window.next_tokens.tolist() == [6, 7, 8, 9]
    windows = make_windows(3, num_scored=(19, 5, 1))
    assert (windows.num_tokens, windows.max_tokens) == (25, 20)


def test_the_same_tokens_in_the_same_context(make_windows):
    windows = make_windows(3)
    assert windows.has_tokens_of(make_windows(3))
    assert not windows.has_tokens_of(make_windows(2))
    assert not windows.has_tokens_of(make_windows(3, num_scored=(19, 18, 19)))
    other = replace(windows.windows[2], token_ids=windows.windows[2].token_ids.flip(0))
    assert not windows.has_tokens_of(replace(windows, windows=(*windows.windows[:2], other)))


def test_a_part_of_the_windows_does_not_know_its_words(make_windows):
    windows = make_windows(3, num_words=7)
    assert windows.first(3) is windows
    first = windows.first(2)
    assert first.windows == windows.windows[:2]
    assert (first.num_words, first.description) == (None, "some windows")

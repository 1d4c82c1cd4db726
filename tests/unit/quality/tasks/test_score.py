"""Answers to items: what is likeliest, what is right, and what length does to it."""

import pytest

from llmopt.quality.tasks.encode import encode_pair
from llmopt.quality.tasks.loglikelihood import LogLikelihood, score_pairs
from llmopt.quality.tasks.requests import TaskRequest
from llmopt.quality.tasks.score import TaskItem, TaskScores, score_item, score_requests


def choose(*log_probs: float, texts: tuple[str, ...], gold: int = 0) -> TaskItem:
    request = TaskRequest("x", "t", "context", texts, gold)
    return score_item(request, [LogLikelihood(value, False) for value in log_probs])


def test_the_likeliest_choice_is_the_answer():
    item = choose(-3.0, -1.0, texts=(" a", " b"), gold=1)
    assert item == TaskItem("x", (-3.0, -1.0), 1, True, True)
    assert not choose(-3.0, -1.0, texts=(" a", " b"), gold=0).correct


def test_the_normalized_score_is_per_byte_without_the_space_in_front():
    # -4 / 4 bytes against -3 / 2 bytes; with the spaces it would be -4 / 5 against -3 / 3
    item = choose(-4.0, -3.0, texts=(" abcd", " ab"))
    assert (item.prediction, item.correct, item.correct_norm) == (1, False, True)
    # two bytes per letter, so that -4 / 4 is better than -2.1 / 2 (by letters: -4 / 2, -2.1 / 2)
    assert choose(-4.0, -2.1, texts=(" éé", " ab")).correct_norm
    # one byte, and not two: -1.6 / 1 against -3 / 2
    assert not choose(-1.6, -3.0, texts=(" a", " ab")).correct_norm


def test_of_equal_scores_the_first_counts():
    assert choose(-1.0, -1.0, texts=(" a", " b")).prediction == 0


def test_a_target_is_right_when_greedy_decoding_gives_it():
    request = TaskRequest("x", "t", "context", (" a",), None)
    item = score_item(request, [LogLikelihood(-2.0, True)])
    assert item == TaskItem("x", (-2.0,), None, True, None)
    assert not score_item(request, [LogLikelihood(-0.1, False)]).correct


def test_requests_are_answered_in_order(task_model):
    requests = [
        TaskRequest("0", "t", "The water of the", (" sea", " old house", "!"), 0),
        TaskRequest("1", "t", "", ("He",), None),
        TaskRequest("2", "t", "The water of the", (" sky", " house"), 1),
    ]
    items = score_requests(task_model, requests, max_batch_tokens=16)
    assert [item.id for item in items] == ["0", "1", "2"]
    for request, item in zip(requests, items, strict=True):
        pairs = [
            encode_pair(task_model.tokenizer, request.context, text)
            for text in request.continuations
        ]
        alone = [score_pairs(task_model.model, [pair])[0].log_prob for pair in pairs]
        assert item.scores == pytest.approx(alone, abs=1e-4)


def test_shares():
    items = (
        TaskItem("0", (-1.0, -2.0), 0, True, False),
        TaskItem("1", (-1.0, -2.0), 0, True, True),
    )
    scores = TaskScores("t", items)
    assert (scores.accuracy, scores.accuracy_norm) == (1.0, 0.5)
    assert TaskScores("t", (TaskItem("0", (), None, False, None),)).accuracy_norm is None

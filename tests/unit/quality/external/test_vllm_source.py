"""A server that answers as vLLM does, from a table of true log-probabilities."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from llmopt.errors import BackendError, UsageError
from llmopt.quality.external.truncated import score_truncated
from llmopt.quality.external.vllm_source import open_server
from llmopt.quality.scores import score_windows
from llmopt.quality.windows import Window


class FakeVllm:
    """Serves a table of logits; `spoil` changes an answer before it is sent."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.models: Any = {"data": [{"id": "m", "max_model_len": 65}]}
        self.spoil: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.status = 200
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        prompt, k = request["prompt"], request["prompt_logprobs"]
        positions: list[Any] = [None]
        for previous, token_id in pairwise(prompt):
            log_probs = self.table[previous].log_softmax(dim=0)
            ranked = log_probs.argsort(descending=True).tolist()
            positions.append(
                {
                    str(told): {
                        "logprob": log_probs[told].item(),
                        "rank": ranked.index(told) + 1,
                        "decoded_token": "?",
                    }
                    for told in dict.fromkeys([token_id, *ranked[:k]])
                }
            )
        return {"choices": [{"text": "", "prompt_logprobs": positions}], "usage": {}}


@pytest.fixture
def server(table_source) -> Iterator[FakeVllm]:
    fake = FakeVllm(table_source(noise=0.5).table)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.answer(fake.models)

        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(fake.spoil(fake.complete(json.loads(body))))

        def answer(self, content: Any) -> None:
            fake.keys.append(self.headers.get("Authorization"))
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(fake.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        fake.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        httpd.shutdown()
        thread.join()


@pytest.fixture
def window() -> Window:
    return Window(torch.tensor([5, 1, 7, 7, 2, 9]), 3, 3)


def test_perplexity_and_agreement_are_those_of_the_logits(server, table_source, windows):
    target, base = (table_source(noise=noise, rows_per_chunk=99) for noise in (0.5, 0.0))
    exact = score_windows(target, base, windows)
    with open_server(server.url, top_k=5) as source:
        assert (source.name, source.max_tokens) == ("m", 63)
        told = score_truncated(source, base, windows)
    np.testing.assert_allclose(told.log_ratio_sums, exact.log_ratio_sums, rtol=1e-5)
    for own, its in zip(told.statistics, exact.statistics, strict=True):
        assert torch.equal(own.same_top1, its.same_top1)
        assert bool((own.kld <= its.kld + 1e-7).all())
        assert float(own.kld.mean()) > 0.3 * float(its.kld.mean())


def test_what_is_asked_for(server, window):
    with open_server(f"{server.url}/v1/", top_k=7) as source:
        told = source.log_probs(window)
    [request] = server.requests
    assert request["prompt"] == [5, 1, 7, 7, 2, 9]
    assert request["prompt_logprobs"] == 7
    assert (request["model"], request["max_tokens"]) == ("m", 1)
    log_probs = server.table[torch.tensor([7, 7, 2])].log_softmax(dim=1).double()
    assert told.next_log_probs.tolist() == [
        pytest.approx(log_probs[row, token].item()) for row, token in enumerate([7, 2, 9])
    ]
    assert told.is_reported.sum(dim=1).tolist() == [
        7 if token in log_probs[row].topk(7).indices else 8 for row, token in enumerate([7, 2, 9])
    ]
    assert server.keys == [None, None]


def test_a_key_is_sent_where_one_is_set(server, window, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with open_server(server.url) as source:
        source.log_probs(window)
    assert server.keys == ["Bearer secret", "Bearer secret"]


def test_one_of_several_models_is_asked_by_its_name(server, window):
    server.models["data"].append({"id": "other", "max_model_len": 33})
    with pytest.raises(UsageError, match="several models: m, other"), open_server(server.url):
        pass
    with (
        pytest.raises(UsageError, match="no model 'third'"),
        open_server(server.url, model="third"),
    ):
        pass
    with open_server(server.url, model="other") as source:
        assert source.max_tokens == 31  # and the window's last token, and one that is generated
        source.log_probs(window)
    assert server.requests[0]["model"] == "other"


def test_what_is_no_server_is_refused():
    with pytest.raises(UsageError, match="'localhost:8000' is not the URL"):
        open_server("localhost:8000").__enter__()
    with pytest.raises(UsageError, match="0 tokens per position"):
        open_server("http://127.0.0.1:9", top_k=0).__enter__()
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:9/? does not answer"):
        open_server("http://127.0.0.1:9").__enter__()


@pytest.mark.parametrize("models", [{"object": "list"}, [], {"data": [{"name": "m"}]}])
def test_a_server_that_lists_no_models_is_refused(server, models):
    server.models = models
    with pytest.raises(BackendError, match="does not list its models"):
        open_server(server.url).__enter__()


def test_a_server_without_a_limit_is_refused(server):
    server.models = {"data": [{"id": "m"}]}
    with pytest.raises(BackendError, match="max_model_len"):
        open_server(server.url).__enter__()


def test_the_servers_own_words_are_told(server, window):
    with open_server(server.url) as source:
        server.status = 400
        server.spoil = lambda _: {"error": {"message": "prompt_logprobs must be at most 5"}}
        with pytest.raises(BackendError, match=r"\(400: .*must be at most 5"):
            source.log_probs(window)


def drop(answer: dict[str, Any]) -> dict[str, Any]:
    del answer["choices"][0]["prompt_logprobs"]
    return answer


def change(answer: dict[str, Any], apply: Callable[[list[Any]], Any]) -> dict[str, Any]:
    apply(answer["choices"][0]["prompt_logprobs"])
    return answer


SPOILED = {
    "none": (drop, "no prompt_logprobs"),
    "null": (lambda a: {"choices": [{"prompt_logprobs": None}]}, "no prompt_logprobs"),
    "no choices": (lambda a: {"choices": []}, "no prompt_logprobs"),
    "a hole": (lambda a: change(a, lambda p: p.__setitem__(4, None)), "no prompt_logprobs"),
    "strings": (lambda a: change(a, lambda p: p.__setitem__(4, {"a": 1})), "no prompt_logprobs"),
    "truncated": (lambda a: change(a, lambda p: p.pop(1)), "read 5 tokens where 6 were sent"),
    "no token": (lambda a: change(a, lambda p: p[5].pop("9")), "the prompt's token 9"),
    "logits": (lambda a: change(a, lambda p: p[4]["2"].update(logprob=0.5)), "more than 1"),
    "nan": (lambda a: change(a, lambda p: p[3]["7"].update(logprob=float("nan"))), "more than 1"),
    "no JSON": (lambda a: b"<html>", "does not answer /v1/completions"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_an_answer_of_another_form_is_an_error(server, window, name):
    spoil, message = SPOILED[name]
    with open_server(server.url) as source:
        server.spoil = spoil
        with pytest.raises(BackendError, match=message):
            source.log_probs(window)

"""Several choices of one request: their order, their sum, their turns in the queue and their end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from inference.api import create_app
from inference.errors import BackendTimeoutError, QueueFullError
from inference.generation import Chunk, GenerateRequest
from tests.fake_service import MODEL, FakeService, FakeStream, end
from tests.test_api_openai import CHAT, CHAT_LOGPROBS, LOGPROB_SCRIPT, TIMINGS, USAGE, events_of

PATHS = ["/v1/chat/completions", "/v1/completions"]
BODIES: dict[str, dict[str, Any]] = {PATHS[0]: CHAT, PATHS[1]: {"prompt": "hi"}}


class Numbered(FakeService):
    """Says of each generation which it is, and notes how many were under way with it."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.together: list[int] = []
        self.fails_at: int | None = None

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> FakeStream:
        """Play two words and the end."""
        number = len(self.requests)
        if number == self.fails_at:
            raise QueueFullError("32 requests are waiting")
        self.script = (Chunk(f"a{number}"), Chunk(f"b{number}"), end())
        stream = super().generate(request, cancelled)
        self.together.append(self.running)
        return stream


def ask(service: FakeService, path: str, **fields: Any) -> Any:
    """Send a request; return its body."""
    response = create_app(service).test_client().post(path, json={**BODIES[path], **fields})
    assert response.status_code == 200, response.get_json()
    return events_of(response.get_data(as_text=True)) if fields.get("stream") else response.get_json()


@pytest.mark.parametrize("path", PATHS)
def test_choices_have_their_index_and_one_usage(path: str) -> None:
    """n choices come in order, each with its reason; usage and timings are those of all."""
    service = Numbered()
    body = ask(service, path, n=3, seed=5)
    texts = [c.get("text") or c["message"]["content"] for c in body["choices"]]
    assert texts == ["a0b0", "a1b1", "a2b2"]
    assert [(c["index"], c["finish_reason"]) for c in body["choices"]] == [(n, "stop") for n in range(3)]
    assert body["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 9,
        "total_tokens": 39,
        "prompt_tokens_details": {"cached_tokens": 12},
    }
    assert body["timings"]["predicted_per_second"] == pytest.approx(30)
    assert [request.seed for request in service.requests] == [5, 6, 7]


def test_prompts_come_before_their_choices() -> None:
    """The choices of the first prompt come first, as OpenAI numbers them."""
    service = Numbered()
    body = ask(service, PATHS[1], prompt=["x", "y"], n=2)
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert [request.prompt for request in service.requests] == ["x", "x", "y", "y"]
    assert ask(Numbered(), PATHS[1], prompt=[[1, 2], [3]])["choices"][1]["text"] == "a1b1"


@pytest.mark.parametrize("path", PATHS)
def test_choices_are_streamed_in_turn(path: str) -> None:
    """Each choice has its index, its role and its reason; the counts and [DONE] come once, last."""
    *events, usage, done = ask(Numbered(), path, n=2, stream=True, stream_options={"include_usage": True})
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    choices = [event["choices"][0] for event in events]
    opening = [(0, None)] if path == PATHS[0] else []
    one = [*opening, (0, None), (0, None), (0, "stop")]
    expected = one + [(1, reason) for _, reason in one]
    assert [(c["index"], c["finish_reason"]) for c in choices] == expected
    if path == PATHS[0]:
        assert [c["index"] for c in choices if "role" in c["delta"]] == [0, 1]
    assert len({event["id"] for event in events}) == 1


def test_no_two_are_under_way_together() -> None:
    """A worker of one slot is asked for the next choice when the one before has given its slot back."""
    for fields in ({}, {"stream": True}):
        service = Numbered()
        ask(service, PATHS[0], n=4, **fields)
        assert service.together == [1, 1, 1, 1] and service.running == 0


def test_one_model_serves_all() -> None:
    """What was selected for the first choice is named for the others."""
    service = Numbered()
    ask(service, PATHS[0], n=3, model="auto")
    assert [(r.model, r.variant) for r in service.requests] == [(None, None), (MODEL, "q4"), (MODEL, "q4")]


def test_a_model_leaves_after_the_last_choice() -> None:
    """keep_alive is that of the request: with 0 the model is not loaded anew for every choice."""
    service = Numbered()
    ask(service, PATHS[0], n=3, keep_alive=0)
    assert [request.keep_alive_s for request in service.requests] == [None, None, 0.0]


def test_a_choice_that_fails_fails_the_request() -> None:
    """Whole, it is a status; in a stream, the last event, and nothing looks like a good end."""
    service = Numbered()
    service.fails_at = 2
    response = create_app(service).test_client().post(PATHS[0], json={**CHAT, "n": 3})
    assert (response.status_code, response.get_json()["error"]["code"]) == (429, "queue_full")
    service = Numbered()
    service.fails_at = 1
    events = ask(service, PATHS[0], n=2, stream=True)
    assert events[-1]["error"]["code"] == "queue_full" and "[DONE]" not in events
    assert service.running == 0


def test_leaving_ends_all() -> None:
    """A client that leaves in the middle of the first choice starts no second."""
    service = Numbered()
    response = create_app(service).test_client().post(PATHS[0], json={**CHAT, "n": 3, "stream": True})
    chunks = iter(response.response)
    next(chunks)
    response.close()
    assert len(service.requests) == 1 and service.running == 0


def test_an_error_within_a_choice_ends_all() -> None:
    """An engine that fails in one choice is not asked for the next."""
    service = FakeService(script=(Chunk("one"), BackendTimeoutError("silent for 30 s")))
    events = ask(service, PATHS[1], n=2, stream=True)
    assert events[-1]["error"]["code"] == "backend_timeout" and len(service.requests) == 1


def test_one_choice_has_the_timings_as_they_are() -> None:
    """Summing one is no change, and an engine without a clock has no timings."""
    body = ask(FakeService(), PATHS[0])
    assert (body["timings"], body["usage"]) == (TIMINGS, USAGE)
    silent = dataclasses.replace(end(), timings=None)
    assert "timings" not in ask(FakeService(script=(silent,)), PATHS[0], n=2)


def test_probabilities_of_every_choice() -> None:
    """Each choice has the log-probabilities of its own tokens, counted from its own start."""
    body = ask(FakeService(script=LOGPROB_SCRIPT), PATHS[0], n=2, logprobs=True, top_logprobs=2)
    assert [c["logprobs"]["content"] for c in body["choices"]] == [CHAT_LOGPROBS] * 2
    body = ask(FakeService(script=LOGPROB_SCRIPT), PATHS[1], n=2, logprobs=2)
    assert [c["logprobs"]["text_offset"] for c in body["choices"]] == [[0, 2], [0, 2]]

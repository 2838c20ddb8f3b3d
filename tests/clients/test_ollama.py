"""The ollama package: chats, texts, structured output, lists, pulling and deleting, errors."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.test_embedding import registry_in

ollama = pytest.importorskip("ollama", reason="make test-clients")
pytestmark = pytest.mark.clients

QUESTION = "Name three animals that live in the sea."
ASK = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "num_predict": 16}


class Animal(BaseModel, extra="forbid"):
    """What is asked for as a schema; with no other properties, of which a small model finds many."""

    name: str = Field(max_length=20)
    legs: int


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Any]:
    """A client whose connections end with the test."""
    with ollama.Client(host=daemon.url) as found:
        yield found


@pytest.fixture(scope="module")
def expected(daemon: DaemonProcess) -> str:
    """The greedy answer to QUESTION, through OpenAI's dialect."""
    text: str = daemon.chat(QUESTION, max_tokens=16)[1]["choices"][0]["message"]["content"]
    return text


def test_a_chat_gets_the_same_answer_whole_and_streamed(client: Any, expected: str) -> None:
    """As through OpenAI's dialect; the numbers count what was generated."""
    whole = client.chat(MODEL, ASK, options=GREEDY)
    assert whole.message.content == expected
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 16)
    assert 0 < whole.eval_duration <= whole.total_duration < 60e9
    assert whole.created_at is not None and datetime.fromisoformat(whole.created_at.replace("Z", "+00:00"))
    parts = list(client.chat(MODEL, ASK, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == expected
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 5 and parts[-1].prompt_eval_count == whole.prompt_eval_count


def test_the_asynchronous_client_works(daemon: DaemonProcess, expected: str) -> None:
    """Two chats at once, one of them streamed."""

    async def ask() -> tuple[str, str]:
        async with ollama.AsyncClient(host=daemon.url) as client:

            async def streamed() -> str:
                parts = await client.chat(MODEL, ASK, options=GREEDY, stream=True)
                return "".join([part.message.content async for part in parts])

            whole, text = await asyncio.gather(client.chat(MODEL, ASK, options=GREEDY), streamed())
            return whole.message.content, text

    assert asyncio.run(ask()) == (expected, expected)


def test_a_text_is_generated(client: Any, expected: str) -> None:
    """A prompt is a turn; raw it is continued; a stop text ends it."""
    assert client.generate(MODEL, QUESTION, options=GREEDY).response == expected
    raw = client.generate(MODEL, "The capital of France is", raw=True, options=GREEDY)
    assert "Paris" in raw.response
    stopped = client.generate(MODEL, QUESTION, options={**GREEDY, "stop": [expected[4:8]]})
    assert (stopped.response, stopped.done_reason) == (expected[:4], "stop")
    parts = client.generate(MODEL, QUESTION, options=GREEDY, stream=True)
    assert "".join(part.response for part in parts) == expected


def test_a_schema_constrains_the_answer(client: Any) -> None:
    """The text is an object of the schema; "json" is any object."""
    found = client.chat(
        MODEL,
        [{"role": "user", "content": "Describe a dog."}],
        format=Animal.model_json_schema(),
        options={"temperature": 0, "num_predict": 64},
    )
    assert Animal.model_validate_json(found.message.content)
    loose = client.generate(
        MODEL, "Describe a dog as JSON.", format="json", options={"temperature": 0, "num_predict": 64}
    )
    assert loose.done_reason == "length" or isinstance(json.loads(loose.response), dict)


def test_log_probabilities_come_along(client: Any) -> None:
    """With alternatives, in the package's own types."""
    found = client.chat(MODEL, ASK, options=GREEDY, logprobs=True, top_logprobs=2)
    assert len(found.logprobs) == 16
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in found.logprobs)


def running_row(client: Any) -> Any:
    """What is told of the loaded model; other tests of these clients have loaded others beside it."""
    return next(each for each in client.ps().models if each.name == f"{MODEL}:latest")


def test_models_are_listed_shown_and_asked_by_the_listed_name(client: Any) -> None:
    """Names make the round trip; show and ps have what the package reads."""
    listed = client.list().models
    row = next(each for each in listed if each.model == f"{MODEL}:latest")
    assert row.size > 50e6 and len(row.digest) == 64 and row.details.format == "gguf"
    assert row.modified_at.tzinfo is not None
    shown = client.show(row.model)
    assert shown.modelinfo["general.architecture"] == "llama"
    assert "completion" in shown.capabilities and "<|im_start|>" in shown.template
    assert client.chat(row.model, ASK, options=GREEDY).model == row.model
    running = running_row(client)
    assert running.size > 50e6 and running.size_vram in (0, running.size)
    assert running.context_length == 1024
    assert running.expires_at.year == 2300


def test_keep_alive_moves_the_end(client: Any) -> None:
    """As long as the last request said; an empty one says it, too."""
    try:
        for told, stays in (("10m", 600), (30.0, 30), ("1h", 3600)):
            before = datetime.now(timezone.utc)
            assert client.generate(MODEL, keep_alive=told).done_reason == "load"
            row = running_row(client)
            assert before < row.expires_at - timedelta(seconds=stays) < datetime.now(timezone.utc)
    finally:
        client.generate(MODEL, keep_alive=-1)
    assert running_row(client).expires_at.year == 2300


def test_errors_are_the_packages_own(client: Any) -> None:
    """A status and a text, also of a stream."""
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="unknown model 'nobody'") as caught:
            list(client.chat("nobody", ASK, stream=stream))
        assert caught.value.status_code == 404
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    for wrong in ({"tools": [tool]}, {"think": True}, {"options": {"temperature": 9}}):
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(MODEL, ASK, **wrong)
        assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="images cannot be read yet"):
        client.chat(MODEL, [{"role": "user", "content": "x", "images": [b"png"]}])
    for refused, names in ((client.copy, ("a", "b")), (client.create, ("a",)), (client.push, ("a",))):
        with pytest.raises(ollama.ResponseError) as caught:
            refused(*names)
        assert caught.value.status_code == 400


def test_a_long_chat_loses_its_oldest_turns(client: Any) -> None:
    """As with Ollama itself, where OpenAI's dialect refuses."""
    turns = [{"role": "user", "content": "word " * 1200}, {"role": "assistant", "content": "Yes."}]
    found = client.chat(MODEL, [*turns, *ASK], options=GREEDY)
    assert found.message.content and found.prompt_eval_count < 100


def test_vectors_are_made(tmp_path: Path) -> None:
    """By a tiny BERT: one text, several, and the old route."""
    options = {"registry": registry_in(tmp_path), "context_tokens": 64, "offline": True}
    with DaemonProcess(tmp_path / "state", **options) as daemon, ollama.Client(host=daemon.url) as client:
        found = client.embed("bert", ["abc def", "x"])
        assert len(found.embeddings) == 2 and found.prompt_eval_count > 0
        assert math.hypot(*found.embeddings[0]) == pytest.approx(1, abs=1e-4)
        assert client.embeddings("bert", "x").embedding == pytest.approx(found.embeddings[1], abs=1e-5)
        assert client.embed("bert", "").embeddings == []
        with pytest.raises(ollama.ResponseError) as caught:
            client.embed("chat", "x")
        assert caught.value.status_code == 400


@pytest.fixture
def own_daemon(smollm2_path: Path, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon whose store may be emptied: it has a copy of SmolLM2 alone."""
    place = tmp_path / "cache" / smollm2_path.relative_to(smollm2_path.parents[1])
    place.parent.mkdir(parents=True)
    shutil.copy(smollm2_path, place)
    options = {"cache_dir": tmp_path / "cache", "offline": True, "context_tokens": 512, "keep_alive_s": -1}
    with DaemonProcess(tmp_path / "state", **options) as started:
        yield started


def test_a_model_is_pulled_loaded_unloaded_and_deleted(own_daemon: DaemonProcess) -> None:
    """The whole life of a model through the package."""
    with ollama.Client(host=own_daemon.url) as client:
        assert [each.status for each in client.pull(MODEL, stream=True)][-1] == "success"
        assert client.pull(f"{MODEL}:latest").status == "success"
        assert client.generate(MODEL).done_reason == "load"
        assert [each.model for each in client.ps().models] == [f"{MODEL}:latest"]
        assert client.generate(MODEL, keep_alive=0).done_reason == "unload"
        assert client.ps().models == []
        client.generate(MODEL, QUESTION, options=GREEDY, keep_alive=0)
        wait_until(lambda: client.ps().models == [], "the unloading")
        client.generate(MODEL)
        assert client.delete(MODEL).status == "success"
        assert client.list().models == []
        with pytest.raises(ollama.ResponseError) as caught:
            client.show(MODEL)
        assert caught.value.status_code == 404

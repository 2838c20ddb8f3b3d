"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tests.clients.conftest import TOOL_MODEL
from tests.daemon_process import MODEL, DaemonProcess

langchain_openai = pytest.importorskip("langchain_openai", reason="make test-clients")
httpx = pytest.importorskip("httpx", reason="make test-clients")
pytestmark = pytest.mark.clients

QUESTION = "Name three animals that live in the sea."
Chat = Callable[..., Any]


@pytest.fixture
def chat(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    """Make ChatOpenAI objects whose connections end with the test."""
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    with httpx.Client() as connections:

        def make(**options: Any) -> Any:
            return langchain_openai.ChatOpenAI(
                base_url=f"{daemon.url}/v1", api_key="none", http_client=connections, temperature=0,
                max_retries=0, **{"model": MODEL, "max_tokens": 24, **options},
            )  # fmt: skip

        yield make


def test_invoke_and_stream_say_the_same(chat: Chat) -> None:
    """The answer, whole and in parts, with the counts of its tokens and the reason of its end."""
    model = chat()
    answer = model.invoke(QUESTION)
    parts = list(model.stream(QUESTION, stream_usage=True))
    assert "".join(part.content for part in parts) == answer.content and len(answer.content.split()) > 3
    assert len([part for part in parts if part.content]) > 3
    assert answer.usage_metadata["output_tokens"] > 0
    assert (
        sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata)
        == (answer.usage_metadata["output_tokens"])
    )
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


def test_ainvoke_and_astream_say_the_same(daemon: DaemonProcess) -> None:
    """The asynchronous half, two requests at once."""

    async def ask() -> tuple[list[str], str]:
        async with httpx.AsyncClient() as connections:
            model = langchain_openai.ChatOpenAI(
                base_url=f"{daemon.url}/v1", api_key="none", model=MODEL, http_async_client=connections,
                temperature=0, max_tokens=24,
            )  # fmt: skip
            both = await asyncio.gather(model.ainvoke(QUESTION), model.ainvoke(QUESTION))
            return [answer.content for answer in both], "".join(
                [part.content async for part in model.astream(QUESTION)]
            )

    answers, streamed = asyncio.run(ask())
    # Only the beginning: what is computed side by side is rounded otherwise than alone.
    assert len({" ".join(text.split()[:3]) for text in (*answers, streamed)}) == 1 and streamed


class Animal(BaseModel):
    """An animal."""

    name: str = Field(description="one word", max_length=20, pattern="^[a-z]{2,20}$")
    swims: bool


def test_with_structured_output_gives_an_instance(chat: Chat) -> None:
    """`with_structured_output` sends a JSON schema, and the grammar makes the text fit it."""
    model = chat(max_tokens=64).with_structured_output(Animal, method="json_schema")
    assert isinstance(model.invoke("Describe a whale."), Animal)


def test_a_conversation_with_a_system_message_is_understood(chat: Chat) -> None:
    """LangChain's message classes arrive as the roles they stand for: each changes the prompt."""
    short, long = ("system", "Be brief."), ("system", "Answer every question with one word and no more.")
    turns = [("human", "Hi"), ("ai", "Hello"), ("human", QUESTION)]
    model = chat(max_tokens=1)
    conversations = ([short, turns[-1]], [long, turns[-1]], [long, *turns])
    counts = [model.invoke(turns).usage_metadata["input_tokens"] for turns in conversations]
    assert counts[0] < counts[1] < counts[2]


class GetWeather(BaseModel):
    """Tells the weather of a city."""

    city: str = Field(pattern="^(Oslo|Paris)$")


def test_a_bound_tool_is_called(chat: Chat) -> None:
    """`bind_tools` with a pydantic class: the call comes back parsed, and fits the class."""
    model = chat(model=TOOL_MODEL, max_tokens=96).bind_tools([GetWeather], tool_choice="any")
    [call] = model.invoke("What is the weather in Oslo?").tool_calls
    assert call["name"] == "GetWeather" and GetWeather(**call["args"])


def test_documents_and_queries_are_embedded_alike(daemon: DaemonProcess, embedding_model: str) -> None:
    """OpenAIEmbeddings with check_embedding_ctx_length=False: otherwise it cuts texts into the tokens of
    OpenAI's own models, which are not this one's."""
    with httpx.Client() as connections:
        embeddings = langchain_openai.OpenAIEmbeddings(
            base_url=f"{daemon.url}/v1", api_key="none", model=embedding_model, http_client=connections,
            check_embedding_ctx_length=False,
        )  # fmt: skip
        documents = embeddings.embed_documents(["A cat sits on the mat.", "Interest rates rose."])
        assert embeddings.embed_query("A cat sits on the mat.") == pytest.approx(documents[0], abs=1e-4)
        assert documents[0] != pytest.approx(documents[1], abs=1e-2)

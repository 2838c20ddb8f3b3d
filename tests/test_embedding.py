"""`inference.embedding`: vectors and tokens by llama.cpp on tiny models, through service and HTTP."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from inference import InferenceEngine
from inference.embedding import _groups
from inference.errors import (
    CancelledError,
    ContextLengthExceededError,
    InvalidRequestError,
    LoadFailedError,
    ModelNotFoundError,
    ModelNotPulledError,
    WorkerCrashedError,
)
from inference.generation import EmbedRequest, GenerateRequest, Message
from inference.runtime.worker import Worker, WorkerSpec
from inference.service import Service, build_service
from inference.settings import load_settings, worker_environment
from tests.daemon_process import DaemonProcess
from tests.scripted_service import MODEL as SCRIPTED
from tests.scripted_service import scripted_backend, scripted_registry
from tests.tiny_gguf import tiny_bert, tiny_llama
from tests.tiny_gpt2 import load_options

TEXTS = ["abc def", "x", "hello world this is it", "a b c d e f g", "zz"]


def registry_in(directory: Path) -> Path:
    """A registry with a BERT that embeds, a Llama that embeds and one that generates, all of them tiny."""
    files = {"bert": tiny_bert(), "lama": tiny_llama(), "chat": tiny_llama()}
    models = {}
    for name, content in files.items():
        (directory / f"{name}.gguf").write_bytes(content)
        source = {"type": "file", "path": str(directory / f"{name}.gguf")}
        models[name] = {
            "name": name,
            "parameters": "1M",
            "memory_requirement": 50,
            "container": None,
            "status": "experimental",
            "use_cases": ["conversation"] if name == "chat" else ["embedding"],
            "chat": "embedded" if name == "chat" else "none",
            "context_length": 64,
            "variants": {"f32": {"backend": "llamacpp", "source": source}},
        }
    absent = {**models["bert"], "variants": {"f32": {"backend": "llamacpp"}}}
    path = directory / "models.json"
    path.write_text(json.dumps({"models": {**models, "absent": absent}}))
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `registry_in`."""
    return registry_in(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def service(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests here."""
    state = tmp_path_factory.mktemp("state")
    options = {"registry": registry, "state_dir": state, "context_tokens": 64, "max_loaded_models": 3}
    made = build_service(load_settings({**options, "keep_alive_s": -1, "min_residency_s": 0, "slots": 2}))
    for name in ("bert", "lama", "chat"):
        made.load(name)
    yield made
    made.close()


@pytest.fixture(scope="module")
def daemon(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with the same models."""
    options = {"registry": registry, "context_tokens": 64, "min_residency_s": 0, "offline": True}
    with DaemonProcess(tmp_path_factory.mktemp("daemon"), **options) as started:
        yield started


def embed(service: Service, *inputs: Any, model: str | None = "bert") -> tuple[tuple[float, ...], ...]:
    """The vectors of *inputs*."""
    return service.embed(EmbedRequest(inputs=inputs, model=model)).vectors


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The angle's cosine of vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model", ["bert", "lama"])
def test_vectors_have_length_one_and_depend_on_their_text(service: Service, model: str) -> None:
    """One for each input in its order: the same text gives the same vector, another text another one."""
    first, again, other = embed(service, "abc", "abc", "xyz", model=model)
    assert [math.hypot(*vector) for vector in (first, again, other)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert len(first) == 32
    assert cosine(first, again) == pytest.approx(1, abs=1e-6)
    assert cosine(first, other) < 0.99


@pytest.mark.parametrize("model", ["bert", "lama"])
def test_a_list_gives_what_its_texts_give_alone(service: Service, model: str) -> None:
    """Texts of all lengths side by side do not mix: the engine's slots compute them at once."""
    many = embed(service, *(TEXTS * 5), model=model)
    alone = [embed(service, text, model=model)[0] for text in TEXTS] * 5
    assert len(many) == len(alone)
    for one, other in zip(many, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("model", ["bert", "lama"])
def test_tokens_of_a_text_give_its_vector(service: Service, model: str) -> None:
    """What the model puts around a text, it puts around its tokens, once."""
    bare = tuple(service.tokenize(model, "abc def")["tokens"])
    whole = (2, *bare, 3) if model == "bert" else (1, *bare)
    text, *others = embed(service, "abc def", bare, whole, model=model)
    for other in others:
        assert other == pytest.approx(text, abs=1e-5)
    found = service.embed(EmbedRequest(inputs=(bare,), model=model))
    assert found.prompt_tokens == len(bare) + (2 if model == "bert" else 1)
    counted = service.count_tokens(GenerateRequest(model=model, prompt="abc def"))
    assert counted["tokens"] == found.prompt_tokens == len(whole)


def test_the_answer_names_its_model_and_counts(service: Service) -> None:
    """[CLS] a b c [SEP] are 5 tokens; without a name the embedding models are chosen from."""
    found = service.embed(EmbedRequest(inputs=("abc",)))
    assert (found.model, found.variant) in [("bert", "f32"), ("lama", "f32")]
    assert service.embed(EmbedRequest(inputs=("abc", "abc"), model="bert")).prompt_tokens == 10
    assert service.embed(EmbedRequest(inputs=("abc",), model="auto:embedding")).model == found.model


def test_an_input_that_is_too_long_is_told_with_its_counts(service: Service) -> None:
    """100 words and two ends are 102 tokens; the context has 64, and nothing is cut off."""
    with pytest.raises(ContextLengthExceededError) as caught:
        embed(service, "a", "a " * 100)
    assert caught.value.details == {"prompt_tokens": 102, "context_tokens": 64}
    assert caught.value.param == "input"
    assert caught.value.message.startswith("input 1 has 102 tokens")
    assert len(embed(service, "a " * 62)) == 1


@pytest.mark.parametrize("ids", [(99999,), (-1,), (4, 56)])
def test_tokens_that_the_model_has_not_are_refused(service: Service, ids: tuple[int, ...]) -> None:
    """The vocabulary ends at 55: a clear error, for embedding and for text."""
    with pytest.raises(InvalidRequestError, match="expected token ids from 0 to 55, got"):
        embed(service, ids)
    with pytest.raises(InvalidRequestError, match="expected token ids from 0 to 55, got"):
        service.detokenize("bert", ids)


def test_each_kind_of_model_refuses_the_others_work(service: Service) -> None:
    """Neither is loaded for it: the error names the model and what to do."""
    with pytest.raises(InvalidRequestError) as caught:
        embed(service, "a", model="chat")
    assert caught.value.message == "model: chat generates text and makes no embeddings"
    assert caught.value.hint == "name an embedding model: bert, lama, absent"
    for request in (
        GenerateRequest(model="bert", messages=(Message("user", "hi"),)),
        GenerateRequest(model="bert", prompt="hi"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            service.generate(request)
        assert caught.value.message == "model: bert makes embeddings and generates no text"
        assert "/v1/embeddings" in (caught.value.hint or "")


def test_nothing_is_embedded_without_input_or_model(service: Service) -> None:
    """No input, a name that there is not, weights that are not here: each by its own error."""
    with pytest.raises(InvalidRequestError, match="at least one text"):
        embed(service)
    with pytest.raises(ModelNotFoundError, match="brt"):
        embed(service, "a", model="brt")
    with pytest.raises(ModelNotPulledError):
        embed(service, "a", model="absent")


def test_a_caller_who_leaves_ends_the_work(service: Service) -> None:
    """Between two groups of inputs it is noticed."""
    asked: list[int] = []

    def gone() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(CancelledError):
        service.embed(EmbedRequest(inputs=("abc",) * 2000, model="bert"), gone)
    assert len(embed(service, "a")) == 1


def test_inputs_go_to_the_worker_in_groups() -> None:
    """At most 16, and 16,384 characters or tokens, but a long one alone; in their order."""
    inputs: list[str | tuple[int, ...]] = ["a"] * 20
    inputs += ["b" * 20_000, "c", (1,) * 16_383, "d"]
    groups = list(_groups(inputs))
    assert [len(group) for group in groups] == [16, 4, 1, 2, 1]
    assert [item for group in groups for item in group] == inputs


def test_a_text_goes_to_tokens_and_back(service: Service) -> None:
    """Nothing is added; bytes that are no character come back as a replacement character."""
    text = "abc dé €"
    found = service.tokenize("chat", text)
    assert found["model"] == "chat" and found["variant"] == "f32"
    assert service.detokenize("chat", found["tokens"])["text"].strip() == text
    assert service.detokenize("chat", [3 + 0xE2])["text"] == "\N{REPLACEMENT CHARACTER}"
    assert service.detokenize("chat", [])["text"] == ""


def test_counted_tokens_are_those_that_are_read(service: Service) -> None:
    """Of a prompt and of a chat as its template writes it: what generating then counts."""
    for request in (
        GenerateRequest(model="chat", prompt="abc", max_tokens=1),
        GenerateRequest(model="chat", messages=(Message("user", "abc"),), max_tokens=1),
    ):
        counted = service.count_tokens(request)
        with service.generate(request) as stream:
            for _ in stream:
                pass
        assert stream.result is not None
        assert counted["tokens"] == stream.result.usage.prompt_tokens
        assert counted["context_tokens"] == 64
    longer = GenerateRequest(model="chat", prompt="abc " * 100)
    assert service.count_tokens(longer)["tokens"] > 64


def test_an_embedding_worker_generates_nothing(tmp_path: Path, start_worker: Callable[..., Worker]) -> None:
    """Its capabilities say so, a request that reaches it all the same is refused; no batch is too small."""
    (tmp_path / "m.gguf").write_bytes(tiny_bert())
    options = load_options(tmp_path / "m.gguf", context_tokens=64, device=None, embeds=True)
    worker = start_worker(WorkerSpec("m/v", "llamacpp", options.to_dict(), worker_environment()))
    assert worker.info is not None
    assert worker.info["capabilities"] == ["embed", "tokenize"]
    with pytest.raises(InvalidRequestError, match="generates no text"):
        next(worker.generate(GenerateRequest(prompt="a"), lambda: False))
    assert options.prefill_batch_tokens == 16
    assert len(worker.ask("embed", inputs=["a " * 50])["vectors"]) == 1


def test_a_worker_for_text_embeds_nothing(tmp_path: Path, start_worker: Callable[..., Worker]) -> None:
    """The other way round."""
    (tmp_path / "m.gguf").write_bytes(tiny_llama())
    options = load_options(tmp_path / "m.gguf", context_tokens=64, device=None)
    worker = start_worker(WorkerSpec("m/v", "llamacpp", options.to_dict(), worker_environment()))
    with pytest.raises(InvalidRequestError, match="makes no embeddings"):
        worker.ask("embed", inputs=["a"])


def test_a_broken_embedding_model_is_refused_at_once(
    tmp_path: Path, start_worker: Callable[..., Worker]
) -> None:
    """A file of half a model does not load."""
    (tmp_path / "m.gguf").write_bytes(tiny_bert()[:20_000])
    options = load_options(tmp_path / "m.gguf", context_tokens=64, device=None, embeds=True)
    worker = start_worker(WorkerSpec("m/v", "llamacpp", options.to_dict(), worker_environment()))
    assert isinstance(worker.exit_error, LoadFailedError)


def test_a_worker_that_dies_is_replaced_and_asked_once_more(tmp_path: Path) -> None:
    """What kills it twice is told to the caller; the next one is served by a third."""
    path = scripted_registry(tmp_path)
    content = json.loads(path.read_text())
    content["models"][SCRIPTED]["use_cases"] = ["embedding"]
    path.write_text(json.dumps(content))
    with scripted_backend():
        made = build_service(load_settings({"registry": path, "keep_alive_s": -1, "min_residency_s": 0}))
        try:
            assert embed(made, "abc", model=SCRIPTED)[0] == pytest.approx((math.cos(0.03), math.sin(0.03)))
            with pytest.raises(WorkerCrashedError):
                embed(made, "abc", "segv", model=SCRIPTED)
            assert len(embed(made, "abc", (3,), model=SCRIPTED)) == 2
            assert made.status()["counters"]["worker_restarts_total"][0]["value"] == 2
        finally:
            made.close()


def test_the_engine_embeds_a_text_or_a_list(registry: Path) -> None:
    """From Python: plain values, and the counts."""
    with InferenceEngine(registry=registry, context_tokens=64) as engine:
        one = engine.embed("abc", model="bert")
        many = engine.embed(["abc", "x y"], model="bert")
    assert (one["model"], one["variant"], one["usage"]) == ("bert", "f32", {"prompt_tokens": 5})
    assert len(one["embeddings"]) == 1 and len(many["embeddings"]) == 2
    assert many["embeddings"][0] == pytest.approx(one["embeddings"][0], abs=1e-5)


def test_the_openai_package_gets_its_vectors(daemon: DaemonProcess, service: Service) -> None:
    """Over HTTP, in base64 as the package asks by default and as numbers, they are the service's."""
    openai = pytest.importorskip("openai")
    expected = embed(service, *TEXTS)
    tokens = list(service.tokenize("bert", TEXTS[0])["tokens"])
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        for options in ({}, {"encoding_format": "float"}):
            found = client.embeddings.create(model="bert", input=TEXTS, **options)
            assert [item.index for item in found.data] == list(range(len(TEXTS)))
            for item, vector in zip(found.data, expected, strict=True):
                assert item.embedding == pytest.approx(vector, abs=1e-5)
        assert found.model == "bert" and found.usage.prompt_tokens == found.usage.total_tokens == 44
        of_tokens = client.embeddings.create(model="bert", input=[tokens, tokens])
        assert of_tokens.data[1].embedding == pytest.approx(expected[0], abs=1e-5)
        for wrong in ({"input": "a " * 100}, {"input": [[99999]]}, {"input": "a", "dimensions": 8}):
            with pytest.raises(openai.BadRequestError):
                client.embeddings.create(model="bert", **wrong)
        with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
            client.embeddings.create(model="chat", input="a")
        with pytest.raises(openai.BadRequestError, match="generates no text"):
            client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "a"}])


def test_curl_gets_what_it_asks_for(daemon: DaemonProcess) -> None:
    """Any embedding model, base64 on request, tokens and counts, and clear refusals."""
    status, body = daemon.ask("POST", "/v1/embeddings", {"input": "abc", "encoding_format": "base64"})
    assert status == 200 and body["model"] in ("bert", "lama")
    vector = struct.unpack("<32f", base64.b64decode(body["data"][0]["embedding"]))
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    status, body = daemon.ask("POST", "/jetllm/v1/tokenize", {"model": "bert", "text": "abc"})
    assert status == 200 and len(body["tokens"]) == 3
    status, body = daemon.ask("POST", "/jetllm/v1/detokenize", {"model": "bert", "tokens": body["tokens"]})
    assert (status, body["text"].replace(" ", "")) == (200, "abc")
    status, body = daemon.ask("POST", "/jetllm/v1/detokenize", {"model": "bert", "tokens": [999]})
    assert (status, body["error"]["param"]) == (400, "tokens")
    counted = {"model": "chat", "messages": [{"role": "user", "content": "abc"}]}
    status, body = daemon.ask("POST", "/jetllm/v1/count_tokens", counted)
    assert status == 200 and body["tokens"] > 3 and body["context_tokens"] == 64
    status, body = daemon.ask("POST", "/v1/completions", {"model": "chat", "prompt": [9999]})
    assert status == 400

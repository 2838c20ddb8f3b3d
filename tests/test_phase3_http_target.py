"""The HTTP target where the other side is not as it should be, and where exactly its clock is read."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.device import describe
from phase3.described import environment_of, registered_of, worker_share
from phase3.http_target import HttpTarget
from phase3.measured import Ask
from phase3.target import Environment, TargetError
from tests.daemon_process import DaemonProcess
from tests.scripted_service import scripted_registry

DEADLINE_S = 20.0
CHOICE = {"model": "m", "variant": "v", "candidates": []}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
DONE = b"data: [DONE]\n\n"
Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as *answers* says of the path."""

    answers: dict[str, Answer]

    def do_POST(self) -> None:
        """Read the body and answer; the connection ends after it."""
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answers[self.path](self)

    def reply(self, status: int, *parts: bytes) -> None:
        """Send a status and the parts of a body, which ends with the connection."""
        self.send_response(status)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def json_answer(status: int, value: object) -> Answer:
    return lambda handler: handler.reply(status, json.dumps(value).encode())


def event(text: str | None = None, **values: object) -> bytes:
    choice = {"index": 0, "text": text or "", "logprobs": None, "finish_reason": values.pop("reason", None)}
    choices = [] if values.get("usage") else [choice]
    return b"data: " + json.dumps({"choices": choices, "usage": None, **values}).encode() + b"\n\n"


END = (event(reason="length"), event(usage=USAGE), DONE)


@pytest.fixture
def serve() -> Iterator[Callable[..., HttpTarget]]:
    """Serve a path, by default completions, with an answer; return a target for it."""
    servers = []

    def start(answer: Answer, path: str = "/v1/completions") -> HttpTarget:
        answers = {"/jetllm/v1/select": json_answer(200, CHOICE), path: answer}
        handler = type("ThisHandler", (Handler,), {"answers": answers})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return HttpTarget(f"http://127.0.0.1:{server.server_port}", "m")

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(DEADLINE_S)
        server.server_close()


Serve = Callable[..., HttpTarget]


def test_time_is_taken_where_a_piece_is_received(serve: Serve) -> None:
    """Server and reader in lockstep: every piece's time lies between its sending and the next one's."""
    sent_s: list[float] = []
    received = threading.Semaphore(0)

    def lockstep(handler: Handler) -> None:
        handler.reply(200)
        for number in range(4):
            sent_s.append(time.monotonic())
            handler.wfile.write(event(f"t{number}"))
            assert received.acquire(timeout=DEADLINE_S)
        handler.wfile.write(b"".join(END))

    arrivals_s = []
    with serve(lockstep)._exchange(Ask(4, prompt="x")) as exchange:
        for piece in exchange.pieces:
            if piece.text:
                arrivals_s.append(piece.arrived_s)
                received.release()
    in_order = [stamp for pair in zip(sent_s, arrivals_s, strict=True) for stamp in pair]
    assert exchange.sent_s <= in_order[0] and in_order == sorted(in_order)


def test_what_is_asked_is_what_is_sent(serve: Serve) -> None:
    """The body names model and variant, is greedy and does not use the cache."""
    bodies: list[dict[str, Any]] = []

    def keep(handler: Handler) -> None:
        bodies.append(handler.body)
        handler.reply(200, event("a"), *END)

    serve(keep).generate(prompt="x", max_tokens=2, stop=["s"], seed=3)
    assert bodies == [
        {
            "model": "m", "variant": "v", "prompt": "x", "max_tokens": 2, "temperature": 0.0, "seed": 3,
            "stop": ["s"], "ignore_eos": False, "cache_prompt": False, "logprobs": None, "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]  # fmt: skip


ERROR = {"error": {"message": "no memory", "hint": "jetllm unload x", "code": "memory_pressure"}}
BROKEN: dict[str, tuple[Answer, str]] = {
    "an error after the first text": (
        lambda h: h.reply(200, event("a"), b"data: " + json.dumps(ERROR).encode() + b"\n\n"),
        "no memory\n    hint: jetllm unload x",
    ),
    "a status with words": (json_answer(503, ERROR), "no memory\n    hint: jetllm unload x"),
    "a status without words": (
        lambda h: h.reply(502, b"<html>"),
        "the answer is HTTP status 502\n    hint: check the URL: is it JetLLM's?",
    ),
    "an end without [DONE]": (
        lambda h: h.reply(200, event("a")),
        "the stream broke off before its end\n    hint: see the daemon's log",
    ),
    "an end without a reason": (
        lambda h: h.reply(200, event("a"), DONE),
        "the answer ended without a reason to finish",
    ),
    "no JSON": (
        lambda h: h.reply(200, b"data: {\n\n"),
        "the answer is not what a JetLLM daemon sends\n    hint: check the URL",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_an_error(serve: Serve, name: str) -> None:
    """Whatever goes wrong is said with the next step, and never taken for text."""
    answer, wanted = BROKEN[name]
    with pytest.raises(TargetError) as caught:
        serve(answer).generate(prompt="x", max_tokens=2)
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    ("what", "told", "wanted"),
    [
        ("pull", b"event: error\ndata: " + json.dumps(ERROR).encode() + b"\n\n", "no memory"),
        ("build", b": nothing new\n\n", "m: the build ended without saying how"),
    ],
)
def test_long_work_that_fails_is_an_error(serve: Serve, what: str, told: bytes, wanted: str) -> None:
    """An error event of a pull or a build is raised; one that just ends is an error too."""
    events = b"event: progress\ndata: {}\n\n" + told
    target = serve(lambda handler: handler.reply(200, events), f"/jetllm/v1/models/m/{what}")
    with pytest.raises(TargetError, match=wanted):
        {"pull": target._pull, "build": target._build}[what]()


def test_nobody_answers() -> None:
    """A port on which nobody listens is told with the command that starts the daemon."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(TargetError) as caught:
            HttpTarget(url, "m")
    assert str(caught.value).startswith(f"{url} does not answer: ")
    assert str(caught.value).endswith("hint: start it: jetllm serve")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://", ""])
def test_a_url_has_a_scheme_and_a_host(url: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(TargetError, match="expected http://HOST:PORT, got"):
        HttpTarget(url, "m")


def test_a_wrong_key_is_told(tmp_path: Path) -> None:
    """Without the daemon's key, or with another, nothing is measured; the key given is not repeated."""
    with DaemonProcess(tmp_path, registry=scripted_registry(tmp_path), api_key="the-right-key") as daemon:
        for key in (None, "the-wrong-key"):
            with pytest.raises(TargetError) as caught:
                HttpTarget(daemon.url, "scripted", api_key=key)
            assert caught.value.code == "invalid_api_key" and "the-wrong-key" not in str(caught.value)


class TestDescriptions:
    """What is made of JetLLM's own descriptions."""

    def test_a_board_is_described(self) -> None:
        """The fixture board's own words and readings are in the environment."""
        board = Path(__file__).parent / "fixtures" / "devices" / "orin-nano-8gb-super"
        environment = _environment(describe(board))
        assert environment.board and environment.l4t and environment.power_mode
        assert environment.hottest_celsius and environment.gpu_clock_max_hz
        assert environment.memory_total_bytes and environment.power_watts

    def test_nothing_known_is_none(self, tmp_path: Path) -> None:
        """A machine that tells nothing gets no zeros."""
        environment = _environment(describe(tmp_path))
        assert {environment.board, environment.swap_used_bytes, environment.over_current_events} == {None}
        assert (environment.throttled, environment.throttled_by, environment.power_mode) == (None, (), None)

    @pytest.mark.parametrize(("chat", "wanted"), [("none", False), ("embedded", True), (None, None)])
    def test_base_chat_or_unknown(self, chat: str | None, wanted: bool | None) -> None:
        """A model without a template is a base model; where nobody said so it is unknown."""
        registered = registered_of({"chat": chat, "memory_requirement": 1.5}, CHOICE)
        assert registered.is_chat is wanted and registered.memory_requirement_bytes == 1_500_000

    def test_the_variant_declares_before_the_entry(self) -> None:
        """Float32 takes more than the four bits that an entry is about."""
        entry = {"memory_requirement": 1.5, "variants": {"v": {"memory_requirement": 2}}}
        assert registered_of(entry, CHOICE).memory_requirement_bytes == 2_000_000

    @pytest.mark.parametrize(
        ("files", "wanted"),
        [
            ({"status": "PPid:\t7\nVmRSS:\t 9 kB\n", "smaps_rollup": "x\nPss:   5 kB\n"}, 5 * 1024),
            ({"status": "PPid:\t7\nVmRSS:\t 9 kB\n"}, 9 * 1024),
            ({"status": "PPid:\t8\nVmRSS:\t 9 kB\n"}, None),
            ({"status": "PPid:\t7\nVmRSS:\t 9 kB\n", "cmdline": "sshd\0"}, None),
            ({"status": "PPid:\t7\n"}, None),
        ],
        ids=["share", "resident", "child of another", "no worker", "zombie"],
    )
    def test_only_our_worker_is_weighed(
        self, files: dict[str, str], wanted: int | None, tmp_path: Path
    ) -> None:
        """The share is taken, else what is resident; a stranger with the worker's number is nobody."""
        (tmp_path / "42").mkdir()
        for name, text in {"cmdline": "python\0-m\0inference.runtime.worker_main", **files}.items():
            (tmp_path / "42" / name).write_text(text)
        share = worker_share(42, 7, tmp_path)
        assert (share and share.bytes) == wanted
        assert worker_share(43, 7, tmp_path) is None


def _environment(device: dict[str, Any]) -> Environment:
    return environment_of(device=device, status={}, model={"id": "m"}, variant="v", worker=None)

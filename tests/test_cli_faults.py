"""The command line when something breaks: a message, an exit code, never a traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner, Result

from inference.cli import main
from inference.instance import InstanceLock
from tests.terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-JetLLM-Job: job_1\r\n\r\n"
CHUNK = b'data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "Once"}}]}\n\n'


def jetllm(*words: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(words))


def process(*words: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "inference", *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def is_explained(done: Result | subprocess.CompletedProcess[str], code: int = 1) -> bool:
    """Whether it ended with *code*, one error and no traceback."""
    if isinstance(done, Result):
        ended = done.exit_code == code and isinstance(done.exception, SystemExit)
    else:
        ended = done.returncode == code
    clean = "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    return ended and done.stderr.count("error: ") == 1 and clean


@contextmanager
def daemon_that(answers: Callable[[socket.socket], None], state: Path) -> Iterator[str]:
    """Something that holds the state directory as a daemon does, and answers each client so."""
    lock = InstanceLock(state)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    take_request(client)
                    answers(client)

        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        lock.publish(url)
        thread = threading.Thread(target=serve, name="daemon-that")
        thread.start()
        try:
            yield url
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            lock.close()


def take_request(client: socket.socket) -> None:
    """Read one request, its body too."""
    with client.makefile("rb") as stream:
        length = 0
        while (line := stream.readline().lower()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        stream.read(length)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The state directory of the commands."""
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path))
    return tmp_path


# A reader that leaves, a disk that is full


@pytest.mark.parametrize("words", [("version",), ("models", "--json")], ids=["little", "much"])
def test_a_reader_that_leaves_is_no_error_message(words: tuple[str, ...]) -> None:
    """`jetllm models | head -1`: the exit code tells, nothing is written about it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = process(*words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("words", [("version",), ("models", "--json")], ids=["little", "much"])
def test_a_full_disk_is_one_message(words: tuple[str, ...]) -> None:
    """What standard output does not take is told once, and Python adds nothing."""
    with Path("/dev/full").open("w") as full:
        done = process(*words, stdout=full)
    assert is_explained(done) and "No space left" in done.stderr


# Settings and directories


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("is a directory", None),
        ("is no YAML", "port: [1"),
        ("is no text", "\x00"),
        ("knows no such", "prot: 1"),
    ],
)
def test_an_unreadable_settings_file_is_explained(name: str, text: str | None, tmp_path: Path) -> None:
    """Every command says which file it is."""
    path = tmp_path / "jetllm.yaml"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    done = CliRunner().invoke(main, ["--config", str(path), "models"])
    assert done.exit_code == 78 and "jetllm.yaml" in done.stderr


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (("keys", "add", "laptop"), {"state_dir": "/proc/nowhere"}),
        (("serve",), {"state_dir": "/proc/nowhere", "port": "0"}),
        (("pull", "smollm2-135m-instruct"), {"cache_dir": "/proc/nowhere"}),
        (("select", "--task", "code", "--record", "/proc/nowhere/log"), {}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_directory_that_cannot_be_written_is_explained(
    words: tuple[str, ...], settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error; a wrong state directory has the code of wrong settings, a log costs a warning alone."""
    for name, value in settings.items():
        monkeypatch.setenv(f"JETLLM_{name.upper()}", value)
    done = process(*words)
    assert "Traceback" not in done.stderr
    if words[0] == "select":
        assert done.returncode in (0, 1) and done.stderr
    else:
        assert is_explained(done, 78 if "state_dir" in settings else 1)


# A daemon that is not one, or ends in the middle


def test_a_daemon_that_dies_in_the_answer_is_told(state: Path) -> None:
    """What came is shown; then that the daemon is lost, and where to look."""
    with daemon_that(lambda client: client.sendall(HEAD + CHUNK), state):
        done = jetllm("run", "Tell me a story")
    assert is_explained(done) and done.stdout == "Once"
    assert "ended in the middle of the answer" in done.stderr and "jetllm logs" in done.stderr


def test_a_chunk_that_is_cut_is_told(state: Path) -> None:
    """Half a line of JSON is no answer."""
    with daemon_that(lambda client: client.sendall(HEAD + CHUNK + CHUNK[:20]), state):
        assert is_explained(jetllm("run", "Tell me a story"))


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
def test_what_is_no_daemon_is_told(answer: bytes, state: Path) -> None:
    """Silence, another protocol, half an answer: the daemon is lost."""
    with daemon_that(lambda client: client.sendall(answer), state):
        done = jetllm("ps")
    assert is_explained(done) and "the daemon at http://127.0.0.1" in done.stderr


def test_an_answer_of_another_service_is_told(state: Path) -> None:
    """An error page is no reason for a traceback."""
    page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>"
    with daemon_that(lambda client: client.sendall(page), state):
        assert is_explained(jetllm("ps"))


def test_a_pull_that_the_daemon_leaves_is_told(state: Path) -> None:
    """The work's end was not heard of."""
    with daemon_that(lambda client: client.sendall(HEAD), state):
        done = jetllm("pull", "smollm2-135m-instruct")
    assert is_explained(done) and "before the work was done" in done.stderr


def test_garbage_in_the_lock_is_no_daemon(state: Path) -> None:
    """Who holds the directory and does not say where he listens cannot be asked."""
    lock = InstanceLock(state)
    try:
        (state / "daemon.lock").write_text("\x00{")
        assert jetllm("ps").exit_code == 3
    finally:
        lock.close()


# Ctrl-C


def test_ctrl_c_in_a_pull_ends_the_watching_alone(state: Path) -> None:
    """The daemon goes on; how to watch again and how to stop it are on the screen."""
    progress = (
        b'event: progress\ndata: {"phase": "download", "done_bytes": 5, "total_bytes": 100, '
        b'"rate_bytes_per_s": 1.0, "eta_s": 9.0}\n\n'
    )
    gone = threading.Event()

    def stall(client: socket.socket) -> None:
        client.sendall(HEAD + progress)
        client.settimeout(30)
        if client.recv(1) == b"":
            gone.set()

    with daemon_that(stall, state) as url, Terminal("pull", "gpt2") as terminal:
        terminal.expect("gpt2: downloading")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert gone.wait(10)
        assert "the daemon goes on" in terminal.screen and "jetllm pull gpt2" in terminal.screen
        assert f"curl -X DELETE {url}/jetllm/v1/jobs/job_1" in terminal.screen
        assert "Traceback" not in terminal.screen


def test_ctrl_c_in_a_bench_stops_it(state: Path) -> None:
    """Nobody wants the figures any more, so that the daemon is told to stop."""
    asked: list[bytes] = []

    value = b'{"run": 1, "runs": 3, "ttft_s": 0.1, "decode_tokens_per_s": 5.0}'

    def stall(client: socket.socket) -> None:
        client.sendall(HEAD + b"event: progress\ndata: " + value + b"\n\n")
        client.settimeout(30)
        client.recv(1)

    def serve(client: socket.socket) -> None:
        if asked:
            asked.append(b"DELETE")
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        asked.append(b"POST")
        stall(client)

    with daemon_that(serve, state), Terminal("bench", "gpt2") as terminal:
        terminal.expect("round 1 of 3")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
    assert asked == [b"POST", b"DELETE"] and "stopped" in terminal.screen


# A defect of ours


def test_a_defect_is_one_line_and_exit_code_70(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw is named with its place, and asks for a report."""

    def breaks() -> None:
        raise KeyError("nowhere")

    monkeypatch.setattr(main.commands["version"], "callback", lambda **_: breaks())
    done = CliRunner().invoke(main, ["version"])
    assert done.exit_code == 70
    assert "internal error: KeyError: 'nowhere' (test_cli_faults.py:" in done.stderr
    assert "jetllm doctor --json" in done.stderr and "Traceback" not in done.stderr


def test_what_click_raises_keeps_its_own_exit_code() -> None:
    """A wrong usage inside a command is no defect."""
    assert CliRunner().invoke(main, ["run", " "]).exit_code == 2


# Colour


def test_colour_is_for_terminals_that_want_it(tmp_path: Path) -> None:
    """A terminal gets colour, with NO_COLOR none, and a pipe never any."""
    board = str(ROOT / "tests/fixtures/devices/orin-nano-8gb")
    with Terminal("doctor", "--root", board) as terminal:
        assert terminal.end() == 0
    assert "\x1b[33mwarn" in terminal.screen
    with Terminal("doctor", "--root", board, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert "\x1b[3" not in terminal.screen and "warn" in terminal.screen
    assert "\x1b" not in process("doctor", "--root", board).stdout


# Standard input


@pytest.mark.parametrize(("data", "what"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe", "UTF-8")])
def test_a_prompt_from_standard_input_has_to_be_text(data: bytes, what: str) -> None:
    """Nothing, and what is no text, is wrong usage; nothing is asked of a model."""
    done = CliRunner().invoke(main, ["run", "-"], input=data)
    assert done.exit_code == 2 and what in done.stderr

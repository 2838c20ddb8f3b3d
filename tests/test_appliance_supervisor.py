"""The supervisor as systemd meets it: a real process, and a container engine that runs a scripted daemon."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inference.appliance.health import key_path
from inference.appliance.layout import Layout
from inference.appliance.supervisor import EXIT_ENGINE, EXIT_FAILED, EXIT_UNFIT, Progress
from tests.conftest import wait_until
from tests.scripted_engine import ScriptedEngine
from tests.supervised import NotifySocket, Supervised, appliance, free_port

WATCHDOG_S = 0.8
Start = Callable[..., Supervised]


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    """What systemd is told."""
    listening = NotifySocket(f"{tmp_path}/notify")
    yield listening
    listening.close()


@pytest.fixture
def engine(tmp_path: Path) -> ScriptedEngine:
    """The engine on PATH, whose daemon is loading."""
    return ScriptedEngine(tmp_path / "engine")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An appliance on a free port."""
    return appliance(tmp_path / "root", free_port())


@pytest.fixture
def start(layout: Layout, engine: ScriptedEngine, notify: NotifySocket) -> Iterator[Start]:
    """Start the supervisor; it is stopped at the end."""
    started: list[Supervised] = []

    def start() -> Supervised:
        supervised = Supervised(
            layout.root,
            notify,
            PATH=f"{engine.bin}:{os.environ['PATH']}",
            WATCHDOG_USEC=str(round(WATCHDOG_S * 1e6)),
        )
        started.append(supervised.__enter__())
        return started[0]

    yield start
    engine.serving()  # a request that waits for its token ends
    for supervised in started:
        supervised.__exit__(None, None, None)
    assert engine.pid() is None


def looks(engine: ScriptedEngine, count: int) -> None:
    """Wait until the supervisor has looked at the daemon *count* more times."""
    wanted = engine.asked("GET /readyz") + count
    wait_until(lambda: engine.asked("GET /readyz") >= wanted, f"{count} looks")


def test_ready_is_sent_after_the_first_token_and_not_before(
    start: Start, engine: ScriptedEngine, notify: NotifySocket
) -> None:
    """A daemon that says it is ready, and gives no token, is not ready for systemd."""
    engine.daemon(ready=True, detail={"status": "ready"}, token=False)
    start()
    wait_until(lambda: engine.asked("POST /v1/chat/completions") == 1, "the question")
    notify.wait("STATUS=ready; waiting for the first token")
    looks(engine, 3)
    assert not notify.has("READY=1")
    engine.serving()
    notify.wait("READY=1")
    assert engine.asked("POST /v1/chat/completions") == 1


def test_no_token_is_asked_for_before_the_daemon_is_ready(start: Start, engine: ScriptedEngine) -> None:
    """A daemon that loads is left alone: the canary would wait in its queue."""
    start()
    wait_until(lambda: engine.asked("GET /readyz") > 0, "a look")
    looks(engine, 3)
    assert engine.asked("POST /v1/chat/completions") == 0


def test_a_daemon_that_hangs_feeds_no_watchdog(
    start: Start, engine: ScriptedEngine, notify: NotifySocket
) -> None:
    """WATCHDOG=1 comes while the daemon answers, not while it is stopped, and again when it goes on."""
    engine.serving()
    start()
    notify.wait("READY=1")
    notify.wait("WATCHDOG=1")
    pid = engine.pid()
    assert pid is not None
    notify.forget()
    os.kill(pid, signal.SIGSTOP)
    try:
        notify.wait("STATUS=unreachable")
        notify.forget()
        threading.Event().wait(2 * WATCHDOG_S)  # silence is what systemd waits for; it has no event
        assert not notify.has("WATCHDOG=1")
    finally:
        os.kill(pid, signal.SIGCONT)
    notify.wait("WATCHDOG=1")


def test_a_daemon_that_is_not_ready_any_more_feeds_no_watchdog(
    start: Start, engine: ScriptedEngine, notify: NotifySocket
) -> None:
    """It answers, and says that its own canary failed: that is no progress."""
    engine.serving()
    start()
    notify.wait("READY=1")
    engine.daemon(detail={"status": "failed", "reason": "its canary gave no token"})
    assert notify.wait("STATUS=failed") == "STATUS=failed: its canary gave no token"
    notify.forget()
    looks(engine, 4)
    assert not notify.has("WATCHDOG=1")


def test_loading_counts_as_long_as_it_moves(
    start: Start, engine: ScriptedEngine, notify: NotifySocket
) -> None:
    """Each new percentage extends the start and feeds the watchdog once; the same one again does not."""
    engine.daemon(detail={"status": "loading", "phase": "smollm2", "percent": 10.0})
    start()
    assert notify.wait("STATUS=loading") == "STATUS=loading smollm2 10 %"
    looks(engine, 2)
    for percent in (20.0, 90.0):
        notify.forget()
        engine.daemon(detail={"status": "loading", "phase": "smollm2", "percent": percent})
        notify.wait("WATCHDOG=1")
        assert notify.has("EXTEND_TIMEOUT_USEC=120000000")
        looks(engine, 2)
    notify.forget()
    looks(engine, 3)
    assert notify.told == []


def test_sigterm_drains(start: Start, engine: ScriptedEngine, notify: NotifySocket, layout: Layout) -> None:
    """A request that was accepted gets its answer, systemd is told how long it may take, and the end is 0."""
    engine.serving()
    supervised = start()
    notify.wait("READY=1")
    engine.daemon(ready=True, detail={"status": "ready"}, token=False)
    answers: list[int] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(layout), timeout=20)
        connection.request("POST", "/v1/chat/completions", b"{}")
        answers.append(connection.getresponse().status)
        connection.close()

    client = threading.Thread(target=ask)
    client.start()
    wait_until(lambda: engine.asked("POST /v1/chat/completions") == 2, "the request")
    supervised.process.send_signal(signal.SIGTERM)
    notify.wait("STOPPING=1")
    assert notify.has("EXTEND_TIMEOUT_USEC=35000000")
    wait_until(lambda: engine.calls("stop"), "the stop")
    engine.serving()
    client.join()
    assert answers == [200]
    assert supervised.ended() == 0
    assert engine.calls("stop") == [["stop", "-t", "20", "jetllm"]]
    assert engine.calls()[-1] == ["rm", "--force", "--volumes", "jetllm"]


def test_a_second_sigterm_changes_nothing(start: Start, engine: ScriptedEngine, notify: NotifySocket) -> None:
    """Whoever is impatient does not cut the drain short."""
    engine.serving()
    supervised = start()
    notify.wait("READY=1")
    supervised.process.send_signal(signal.SIGTERM)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.ended() == 0
    assert len(engine.calls("stop")) == 1


@pytest.mark.parametrize(("code", "shown"), [(3, 3), (0, EXIT_FAILED)])
def test_a_daemon_that_ends_gives_its_exit_code(
    start: Start, engine: ScriptedEngine, notify: NotifySocket, code: int, shown: int
) -> None:
    """systemd sees how it ended; an end with 0 that nobody asked for is a failure."""
    engine.serving()
    supervised = start()
    notify.wait("READY=1")
    engine.daemon(exit=code)
    assert supervised.ended() == shown
    assert f"the daemon ended with {code if code else 0}" in "\n".join(supervised.log)
    assert notify.has(f"STATUS=the daemon ended with {code}")


def test_a_daemon_that_is_never_ready_is_stopped(
    start: Start, engine: ScriptedEngine, layout: Layout
) -> None:
    """After ready_timeout_s without a token the supervisor gives up and says why."""
    layout.config.write_text(layout.config.read_text() + "ready_timeout_s = 1.5\n")
    engine.daemon(detail={"status": "failed", "reason": "unknown model 'x'"})
    supervised = start()
    assert supervised.ended() == EXIT_FAILED
    assert "no token within 1.5 s: unknown model 'x'" in "\n".join(supervised.log)
    assert engine.pid() is None


def test_an_image_for_another_l4t_is_refused_before_anything_starts(
    start: Start, engine: ScriptedEngine, notify: NotifySocket, layout: Layout
) -> None:
    """The labels are held against what the host knows; systemd is told not to try again."""
    (layout.run / "device.json").write_text(json.dumps({"l4t": "38.2.0", "arch": "aarch64"}))
    engine.image("jetllm:current", org__jetllm__l4t="36.4 36.5")
    supervised = start()
    assert supervised.ended() == EXIT_UNFIT
    sentence = "the image is built for L4T 36.4 and 36.5; this machine has L4T 38.2.0"
    assert sentence in notify.wait("STATUS=")
    assert sentence in "\n".join(supervised.log)
    assert engine.calls("run") == []


def test_without_an_image_nothing_is_started(start: Start, engine: ScriptedEngine) -> None:
    """The message says what to do; systemd is told not to try again."""
    engine.no_image("jetllm:current")
    supervised = start()
    assert supervised.ended() == EXIT_UNFIT
    assert "jetllm update FILE" in "\n".join(supervised.log)


def test_an_engine_that_does_not_answer_is_tried_again(start: Start, engine: ScriptedEngine) -> None:
    """Its own words are in the log, and the exit code lets systemd try again."""
    (engine.bin / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n")
    supervised = start()
    assert supervised.ended() == EXIT_ENGINE
    assert "docker image: Cannot connect to the Docker daemon" in "\n".join(supervised.log)


def test_a_container_that_a_killed_supervisor_left_goes_first(
    start: Start, engine: ScriptedEngine, notify: NotifySocket, layout: Layout
) -> None:
    """Its name and its port would be taken."""
    engine.serving()
    argv = [str(engine.bin / "docker"), "run", "--publish", f"127.0.0.1:{port_of(layout)}:8080"]
    left = subprocess.Popen(argv)
    wait_until(lambda: engine.pid() == left.pid, "the container")
    start()
    assert left.wait(20) == -signal.SIGKILL
    notify.wait("READY=1")


def test_the_key_is_on_no_command_line_and_for_nobody_else(
    start: Start, engine: ScriptedEngine, notify: NotifySocket, layout: Layout
) -> None:
    """The daemon gets it by its environment, which systemd's variables are taken out of."""
    engine.serving()
    start()
    notify.wait("READY=1")
    key = key_path(layout).read_text()
    assert len(key) > 30
    assert stat.S_IMODE(key_path(layout).stat().st_mode) == 0o600
    environment = json.loads((engine.directory / "environment.json").read_text())
    assert environment["JETLLM_API_KEY"] == key
    assert "NOTIFY_SOCKET" not in environment
    assert not [call for call in engine.calls() if key in " ".join(call)]


def test_the_key_outlives_a_restart(
    start: Start, engine: ScriptedEngine, notify: NotifySocket, layout: Layout
) -> None:
    """An update that waits for the restarted daemon need not read it anew."""
    key_path(layout).write_text("of this boot")
    engine.serving()
    start()
    notify.wait("READY=1")
    assert key_path(layout).read_text() == "of this boot"


def test_the_canary_asks_for_a_model_of_the_release(
    start: Start, engine: ScriptedEngine, notify: NotifySocket, layout: Layout
) -> None:
    """Where the bundle names a model, the first token is that model's: it is known to be there."""
    golden = {"model": "smollm2", "variant": "q4", "prompt": "Hi", "text": "Hello", "tokens": [1]}
    current = {"version": "1", "bundle": "", "image": "i", "golden": [golden], "installed_unix_s": 1}
    layout.releases.parent.mkdir(parents=True)
    state = {"schema": 1, "current": current, "previous": None, "next": None, "bad": []}
    layout.releases.write_text(json.dumps(state))
    engine.serving()
    start()
    notify.wait("READY=1")
    assert json.loads((engine.directory / "body.json").read_text())["model"] == "smollm2"


def test_progress_is_told_from_standing_still() -> None:
    """Ready and draining are progress; loading is while it moves; everything else is not."""
    progress = Progress()

    def moved(ready: bool = False, **detail: object) -> bool:
        return progress.moved(ready, detail)

    assert not moved(status="unreachable")
    assert moved(status="loading", phase="a", percent=0.0)
    assert not moved(status="loading", phase="a", percent=0.0)
    assert not moved(status="unreachable")
    assert not moved(status="loading", phase="a", percent=0.0)
    assert moved(status="loading", phase="a", percent=0.5)
    assert moved(status="loading", phase="b", percent=0.5)
    assert not moved(status="failed")
    assert not moved()
    assert moved(status="draining")
    assert moved(status="draining")
    assert moved(True, status="ready")


def port_of(layout: Layout) -> int:
    line = next(line for line in layout.config.read_text().splitlines() if line.startswith("port"))
    return int(line.split("=")[1])

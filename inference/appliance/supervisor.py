"""The supervisor: runs the daemon in the foreground and tells systemd how it really is.

READY=1 is sent once the daemon is ready and has given a token, WATCHDOG=1 only when it made progress: a
daemon that hangs is silence, and systemd answers silence with a restart.
"""

from __future__ import annotations

import grp
import logging
import math
import os
import secrets
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from inference.appliance.config import Config
from inference.appliance.engine import CURRENT, KEY_VARIABLE, NAME, Engine
from inference.appliance.errors import ImageError, NoReleaseError, NotReadyError
from inference.appliance.fit import why_unfit
from inference.appliance.health import PROBE_TIMEOUT_S, Daemon, KeyRefusedError, key_path, supervised_daemon
from inference.appliance.layout import Layout
from inference.appliance.native import Native
from inference.appliance.notify import Notifier, inherited
from inference.appliance.releases import load_releases
from inference.artifacts import files
from inference.device.detect import Device, detect
from inference.errors import JetLLMError

EXIT_FAILED = 1
EXIT_ENGINE = 69
"""EX_UNAVAILABLE: the container engine does not do what it is asked; systemd tries again."""

EXIT_UNFIT = 78
"""EX_CONFIG: nothing to run here, or not on this machine; systemd does not try again."""

STALL_S = 120.0
"""Time that a start may take without progress; jetllm.service's TimeoutStartSec is the same."""

STOP_GRACE_S = 15.0
"""From the end of the drain to SIGKILL: the daemon stops its workers meanwhile."""

_START_POLL_S = 0.5
_POLL_S = 5.0
_GPU_GROUPS = ("video", "render")
logger = logging.getLogger(__name__)


class Served(Protocol):
    """What is supervised: a daemon, and the process that stands for it here."""

    @property
    def daemon(self) -> Daemon:
        """Where it is asked."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; the process ends when it ends."""

    def stop(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Ask it to end, and kill it after *timeout_s*."""

    def remove(self) -> None:
        """Leave nothing of it behind, however it ended."""


def supervise(config: Config, layout: Layout, environ: Mapping[str, str], *, native: bool = False) -> int:
    """Run the daemon until SIGTERM or SIGINT, or until it ends; return the exit code.

    Args:
        environ: of this process: what systemd tells it, and what the engine's command needs.
        native: run `jetllm serve` of this Python instead of a container.
    """
    notifier = Notifier(environ)
    served: Served
    try:
        if native:
            served = Native(config, layout, environ)
        else:
            engine = Engine(config, layout)
            check_image(engine, detect(layout.root))
            served = Container(engine, config, layout, environ)
        model = None if native else _golden_model(engine, layout)
        return Supervisor(served, notifier, config, model=model).run()
    except JetLLMError as error:
        logger.error("%s", error)
        notifier.status(error.message)
        return _exit_code(error)
    except OSError as error:
        logger.error("%s: %s", error.filename or "supervise", error.strerror)
        return EXIT_FAILED


def remove_container(config: Config, layout: Layout) -> None:
    """Remove the daemon's container, whatever it does; for what a killed supervisor left.

    Raises:
        ImageError: the engine does not do it.
    """
    Engine(config, layout).remove(NAME)


def check_image(engine: Engine, device: Device, name: str = CURRENT) -> None:
    """See that there is an image and that it runs on *device*.

    Raises:
        NoReleaseError: there is none.
        UnfitImageError: it was built for another machine.
    """
    if engine.image_id(name) is None:
        raise NoReleaseError(f"there is no image {name}", hint="jetllm status; then jetllm update FILE")
    reason = why_unfit(engine.labels(name), device)
    if reason is not None:
        raise UnfitImageError(f"{name}: {reason}", hint="bring one that fits: jetllm update FILE")


class UnfitImageError(JetLLMError):
    """The image was built for another machine than this."""

    code = "image_unfit"


class Container:
    """The daemon of the current image, in a container."""

    def __init__(self, engine: Engine, config: Config, layout: Layout, environ: Mapping[str, str]) -> None:
        self._engine = engine
        self._layout = layout
        self._environ = environ
        _make_key(key_path(layout))
        self.daemon = supervised_daemon(config, layout)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; a container that an earlier supervisor left goes first."""
        self.remove()
        on_jetson = detect(self._layout.root).l4t is not None
        argv = self._engine.run_argv(CURRENT, groups=list(_gpu_groups()) if on_jetson else ())
        environment = {**inherited(self._environ), KEY_VARIABLE: self.daemon.key or ""}
        # In a session of its own: a terminal's ctrl-C is for the supervisor, who then stops it in order.
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)  # noqa: S603 - ours

    def stop(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Ask it to end, and kill it after *timeout_s*."""
        self._engine.stop(NAME, timeout_s)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE_S)

    def remove(self) -> None:
        """Leave no container behind."""
        self._engine.remove(NAME)


class Progress:
    """Tells a daemon that gets on from one that stands still."""

    def __init__(self) -> None:
        self._seen: tuple[Any, Any] | None = None

    def moved(self, ready: bool, detail: Mapping[str, Any]) -> bool:
        """Whether the daemon got on since the last look: it is ready, drains, or has loaded more."""
        status = detail.get("status")
        if ready or status == "draining":
            return True
        if status != "loading":
            return False
        at = (detail.get("phase"), detail.get("percent"))
        moved, self._seen = at != self._seen, at
        return moved


class Supervisor:
    """Starts *served*, follows it, and stops it.

    Args:
        model: who is asked for the first token; by default whom the daemon selects.
    """

    def __init__(
        self, served: Served, notifier: Notifier, config: Config, *, model: str | None = None
    ) -> None:
        self._served = served
        self._notifier = notifier
        self._config = config
        self._model = model
        self._progress = Progress()
        self._status = ""
        # A late answer and the next question fit into the watchdog's time.
        watchdog_s = notifier.watchdog_s or math.inf
        self._start_poll_s, self._poll_s = min(_START_POLL_S, watchdog_s / 8), min(_POLL_S, watchdog_s / 4)
        self._probe_s = min(PROBE_TIMEOUT_S, watchdog_s / 3)

    def run(self) -> int:
        """Return the exit code: 0 after a stop that was asked for, else the daemon's own or `EXIT_FAILED`."""
        with _signals() as signals:
            self._notifier.extend(STALL_S)
            process = self._served.start()
            try:
                code = self._follow(process, signals)
                return self._stop(process) if code is None else code
            finally:
                self._clear(process)

    def _clear(self, process: subprocess.Popen[bytes]) -> None:
        try:
            if process.poll() is None:
                self._served.stop(process, STOP_GRACE_S)
        finally:
            try:
                self._served.remove()
            finally:
                _reap(process)

    def _follow(self, process: subprocess.Popen[bytes], signals: _Signals) -> int | None:
        """Watch until the daemon ends, which gives an exit code, or until a stop is asked for."""
        began_s, served = time.monotonic(), False
        canary = _Canary(self._served.daemon, self._model, self._config.ready_timeout_s)
        while True:
            signals.wait(self._poll_s if served else self._start_poll_s)
            if signals.stop:
                return None
            if process.poll() is not None:
                return self._ended(process.returncode)
            ready, detail = self._served.daemon.ready(timeout_s=self._probe_s)
            moved = self._progress.moved(ready, detail)
            if not served:
                served = ready and canary.token()
                if not served and time.monotonic() - began_s > self._config.ready_timeout_s:
                    return self._too_late(canary, detail)
                if served:
                    self._notifier.ready(f"ready after {time.monotonic() - began_s:.1f} s")
                    logger.info("ready after %.1f s", time.monotonic() - began_s)
                elif moved:
                    self._notifier.extend(STALL_S)
            if moved:
                self._notifier.watchdog()
            self._say(_words(ready, served, detail))

    def _say(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    def _stop(self, process: subprocess.Popen[bytes]) -> int:
        drain_s = self._config.drain_timeout_s
        self._notifier.stopping("draining", drain_s + 2 * STOP_GRACE_S)
        logger.info("stopping: accepted requests get %g s", drain_s)
        self._served.stop(process, drain_s + STOP_GRACE_S)
        return 0

    def _ended(self, code: int) -> int:
        """Say how the daemon ended; a clean end that nobody asked for is a failure too."""
        shown = 128 - code if code < 0 else code
        what = f"the daemon ended with {shown}{_meaning(shown)}"
        logger.error("%s", what)
        self._notifier.status(what)
        return shown or EXIT_FAILED

    def _too_late(self, canary: _Canary, detail: Mapping[str, Any]) -> int:
        why = canary.reason or detail.get("reason") or detail.get("status")
        what = f"no token within {self._config.ready_timeout_s:g} s: {why}"
        logger.error("%s", what)
        self._notifier.status(what)
        return EXIT_FAILED


class _Canary:
    """Asks for the first token, in a thread, so that the daemon's progress is seen meanwhile."""

    def __init__(self, daemon: Daemon, model: str | None, timeout_s: float) -> None:
        self._daemon = daemon
        self._model = model
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None
        self._has_token = False
        self.reason: str | None = None

    def token(self) -> bool:
        """Whether the token came; where nobody asks for it, somebody does from now on."""
        if self._thread is None or not (self._has_token or self._thread.is_alive()):
            self._thread = threading.Thread(target=self._ask, name="canary", daemon=True)
            self._thread.start()
        return self._has_token

    def _ask(self) -> None:
        try:
            self._daemon.canary(self._model, timeout_s=self._timeout_s)
        except KeyRefusedError as error:
            # Without a key of ours (a native daemon with keys) the daemon's own canary, which
            # /readyz stands for, must do.
            self._has_token, self.reason = self._daemon.key is None, error.message
        except NotReadyError as error:
            self.reason = error.message
        else:
            self._has_token = True


class _Signals:
    """Waits for signals without a race: each one makes *wake* readable."""

    def __init__(self, wake: int) -> None:
        self._wake = wake
        self.stop = False

    def wait(self, timeout_s: float) -> None:
        """Return after *timeout_s*, or as soon as a child ended or a stop was asked for."""
        if not self.stop and select.select([self._wake], [], [], timeout_s)[0]:
            os.read(self._wake, 4096)


@contextmanager
def _signals() -> Iterator[_Signals]:
    wake, wake_up = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = _Signals(wake)

    def stop(*_: object) -> None:
        signals.stop = True

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGCHLD: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    old = signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(wake_up)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Let the engine's command end, now that there is no container."""
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _words(ready: bool, served: bool, detail: Mapping[str, Any]) -> str:
    if ready:
        return "ready" if served else "ready; waiting for the first token"
    parts = [str(detail.get("status") or "not ready")]
    if detail.get("phase"):
        parts.append(str(detail["phase"]))
    if isinstance(detail.get("percent"), (int, float)):
        parts.append(f"{detail['percent']:.0f} %")
    return " ".join(parts) + (f": {detail['reason']}" if detail.get("reason") else "")


def _meaning(code: int) -> str:
    if code == 125:
        return ": the container engine refused to run it"
    with suppress(ValueError):
        name = signal.Signals(code - 128).name
        return f" ({name}{'; usually the kernel is out of memory' if name == 'SIGKILL' else ''})"
    return ""


def _exit_code(error: JetLLMError) -> int:
    if isinstance(error, (UnfitImageError, NoReleaseError)):
        return EXIT_UNFIT
    return EXIT_ENGINE if isinstance(error, ImageError) else EXIT_FAILED


def _golden_model(engine: Engine, layout: Layout) -> str | None:
    """Return a model that the release is known to have; of an update's trial the one that is tried."""
    try:
        found = load_releases(layout.releases)
    except (JetLLMError, OSError):
        return None  # the first boot repairs that file; the daemon serves without it
    is_trial = found.next is not None and found.next.image == engine.image_id(CURRENT)
    release = found.next if is_trial else found.current
    return release.golden[0].model if release is not None and release.golden else None


def _gpu_groups() -> Iterator[int]:
    for name in _GPU_GROUPS:
        with suppress(KeyError):
            yield grp.getgrnam(name).gr_gid


def _make_key(path: Path) -> None:
    """Write a new key, unless this boot has one."""
    if not path.exists():
        files.write_atomic(path, secrets.token_urlsafe(32).encode())

"""The daemon's life: lock, listen, preload, serve, drain, end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import inference
from inference.api.app import create_app
from inference.api.server import serve
from inference.artifacts.files import sweep_temporaries
from inference.console import loading_bar, print_note
from inference.errors import JetLLMError
from inference.instance import InstanceLock
from inference.logs import FORMAT, LogFile
from inference.registry_watch import RegistryWatch
from inference.service import Service, build_service
from inference.settings import Settings

logger = logging.getLogger(__name__)


def run_daemon(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; every worker has ended when this returns.

    Raises:
        AlreadyRunningError, AddressInUseError, UnsafeBindError, RegistryError: nothing was started.
    """
    logging.basicConfig(level=settings.log_level.upper(), format=FORMAT)
    watch = RegistryWatch(settings.registry_path)
    with contextlib.ExitStack() as ending:
        ending.enter_context(_on_hangup(watch))
        lock = InstanceLock(settings.state_path)
        ending.callback(lock.close)
        ending.enter_context(_log_file(settings))
        sweep_temporaries(settings.state_path)
        service = build_service(settings)
        ending.callback(service.close)
        service.canary.start()
        watch.start(service.reload_registry)
        ending.callback(watch.close)
        serve(create_app(service), settings, on_listening=_Announcement(service, lock))


@contextlib.contextmanager
def _log_file(settings: Settings) -> Iterator[None]:
    """Log to the state directory's file too; where it cannot be opened, to standard error alone."""
    try:
        handler = LogFile(settings.state_path)
    except OSError as error:
        logger.warning("no log file: %s: %s", error.filename, error.strerror)
        yield
        return
    root = logging.getLogger()
    for other in root.handlers:
        other.addFilter(lambda record: record.name != logger.name)  # `_say` has written that there
    root.addHandler(handler)
    try:
        yield
    except JetLLMError as error:
        logger.error("%s", error)  # whoever starts us says it on the screen
        raise
    finally:
        logger.info("ended")
        root.removeHandler(handler)
        handler.close()


def _say(text: str) -> None:
    """Tell who started the daemon, and the log."""
    print_note(text)
    logger.info("%s", text)


@contextlib.contextmanager
def _on_hangup(watch: RegistryWatch) -> Iterator[None]:
    """Read the registry again at SIGHUP; end when it means that the terminal is gone."""
    in_terminal = _has_terminal()

    def hang_up(*_: object) -> None:
        if in_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            watch.ask()

    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class _Announcement:
    """Says where the daemon listens, then loads what is to be loaded."""

    def __init__(self, service: Service, lock: InstanceLock) -> None:
        self._service = service
        self._lock = lock

    def __call__(self, host: str, port: int) -> None:
        """Called once the socket listens."""
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._lock.publish(url)
        _say(f"jetllm {inference.__version__} listens on {url}")
        if self._service.settings.preload:
            threading.Thread(target=self._preload, name="preload", daemon=True).start()

    def _preload(self) -> None:
        names = ", ".join(self._service.settings.preload)
        started_s = time.monotonic()
        with loading_bar(names, self._fraction):
            self._service.preload()
        ready, detail = self._service.readiness()
        outcome = (
            f"ready after {time.monotonic() - started_s:.1f} s" if ready else f"not ready: {detail['reason']}"
        )
        _say(f"{names}: {outcome}")

    def _fraction(self) -> float | None:
        workers = self._service.status()["workers"]
        return next((w["progress"] for w in workers if w["progress"] is not None), None)

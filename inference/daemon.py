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
from inference.instance import InstanceLock
from inference.registry_watch import RegistryWatch
from inference.service import Service, build_service
from inference.settings import Settings


def run_daemon(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; every worker has ended when this returns.

    Raises:
        AlreadyRunningError, AddressInUseError, UnsafeBindError, RegistryError: nothing was started.
    """
    level = settings.log_level.upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    watch = RegistryWatch(settings.registry_path)
    with contextlib.ExitStack() as ending:
        ending.enter_context(_on_hangup(watch))
        lock = InstanceLock(settings.state_path)
        ending.callback(lock.close)
        sweep_temporaries(settings.state_path)
        service = build_service(settings)
        ending.callback(service.close)
        watch.start(service.reload_registry)
        ending.callback(watch.close)
        serve(create_app(service), settings, on_listening=_Announcement(service, lock))


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
        print_note(f"jetllm {inference.__version__} listens on {url}")
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
        print_note(f"{names}: {outcome}")

    def _fraction(self) -> float | None:
        workers = self._service.status()["workers"]
        return next((w["progress"] for w in workers if w["progress"] is not None), None)

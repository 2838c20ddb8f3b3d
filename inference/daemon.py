"""The daemon's life: lock, listen, preload, serve, drain, end."""

from __future__ import annotations

import logging
import threading
import time

import inference
from inference.api.app import create_app
from inference.api.server import serve
from inference.console import loading_bar, print_note
from inference.instance import InstanceLock
from inference.service import Service, build_service
from inference.settings import Settings


def run_daemon(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; every worker has ended when this returns.

    Raises:
        AlreadyRunningError, AddressInUseError, UnsafeBindError, RegistryError: nothing was started.
    """
    level = settings.log_level.upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lock = InstanceLock(settings.state_path)
    try:
        service = build_service(settings)
        try:
            serve(create_app(service), settings, on_listening=_Announcement(service, lock))
        finally:
            service.close()
    finally:
        lock.close()


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

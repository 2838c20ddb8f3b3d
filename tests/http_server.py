"""The HTTP server in a thread, with a fake service behind it, and the requests that tests send."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from inference.api import HttpServer, Limits, create_app
from inference.api.context import Context
from tests.fake_service import FakeService
from tests.raw_http import RawClient, wait_until

FAST = Limits(request_s=0.3, stall_s=0.4, idle_s=0.5, linger_s=0.5, farewell_s=1.0, tick_s=0.05)
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
COMPLETION = {"prompt": "hi"}


class Running:
    """A server in a thread."""

    def __init__(self, service: FakeService, limits: Limits) -> None:
        self.service = service
        self.server = HttpServer(create_app(service, limits=limits), service.settings)
        self.address = self.server.address
        self.all_places = self.places
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    @property
    def context(self) -> Context:
        """What its routes share."""
        return self.server._context

    @property
    def places(self) -> int:
        """How many more requests may work."""
        return self.context._permits._value

    def connect(self, **options: Any) -> RawClient:
        """Open a connection."""
        return RawClient(self.address, **options)

    def is_live(self) -> bool:
        """Whether /livez answers on a new connection."""
        with self.connect() as client:
            return client.get("/livez")[0] == 200

    def stop(self) -> None:
        """End it at once."""
        self.server.shutdown()
        self.server.shutdown()
        self.thread.join(10)
        assert not self.thread.is_alive()


Start = Callable[..., Running]


@contextmanager
def servers() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the block."""
    before = set(threading.enumerate())
    running: list[Running] = []

    def go(service: FakeService | None = None, limits: Limits = FAST) -> Running:
        running.append(Running(service or FakeService(), limits))
        return running[-1]

    try:
        yield go
    finally:
        for one in running:
            one.stop()
    assert wait_until(lambda: set(threading.enumerate()) <= before), threading.enumerate()


def code_of(body: bytes) -> str:
    """The error code of a JSON body."""
    return str(json.loads(body)["error"]["code"])

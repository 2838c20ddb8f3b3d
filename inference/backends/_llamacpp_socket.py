"""The private socket of llama.cpp's server, for what the binding has no call for."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference.errors import JetLLMError


class EngineSocket:
    """Asks the server that listens on *path* and wants *key*; *error* makes our error of its own."""

    def __init__(self, path: Path, key: str, error: Callable[[Mapping[str, Any]], JetLLMError]) -> None:
        self._path = path
        self._key = key
        self._error = error

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to a POST of *body*, or to a GET.

        Raises:
            JetLLMError: the server's error.
        """
        connection = _UnixConnection(self._path)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request("GET" if body is None else "POST", path, _to_json(body), headers)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise self._error(answer["error"])
        return answer


def _to_json(body: Mapping[str, Any] | None) -> str | None:
    return None if body is None else json.dumps(body)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

"""A client of a running daemon, for the command line."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from inference.errors import JetLLMError, from_dict

_TIMEOUT_S = 900.0


class Client:
    """Speaks to the daemon at *url*.

    Every method raises the `JetLLMError` that the daemon answered with, or one that says that it
    did not answer.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """Return the JSON at *path*."""
        return self._json("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send *body* and return the JSON answer."""
        return self._json("POST", path, body)

    def chat(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed chat completion."""
        with self._open("POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise _error(chunk)
                yield chunk

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        with self._open(method, path, body) as response:
            return json.loads(response.read())

    def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        # The response keeps the socket open until it is closed itself.
        headers = {**self._headers, "Connection": "close"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
        except OSError as error:
            connection.close()
            raise JetLLMError(
                f"{self._url} does not answer: {error}", hint="start it: jetllm serve"
            ) from None
        if response.status >= 400:
            with response:
                raise _error(_parse(response.read(), response.status))
        return response


def _parse(data: bytes, status: int) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return {"error": {"message": f"HTTP status {status}"}}


def _error(answer: Any) -> JetLLMError:
    error = answer.get("error", {}) if isinstance(answer, dict) else {}
    return from_dict(error)

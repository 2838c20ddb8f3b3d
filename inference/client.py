"""A client of a running daemon, for the command line."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from inference.errors import JetLLMError, from_dict

_TIMEOUT_S = 900.0
_KEY_HINT = "give the command a key: JETLLM_API_KEY=KEY jetllm ...; make one: jetllm keys add NAME"
_NEXT_STEP = "jetllm status; what it said last: jetllm logs"


class NoDaemonError(JetLLMError):
    """No daemon runs with this state directory, and the command needs one."""

    code = "no_daemon"


class DaemonLostError(JetLLMError):
    """The daemon does not answer, or ended in the middle of an answer."""

    code = "daemon_lost"
    retryable = True


class KeyRefusedError(JetLLMError):
    """The daemon asks for a key, and this command has none that it takes."""

    code = "invalid_api_key"


class Client:
    """Speaks to the daemon at *url*.

    Every method raises the `JetLLMError` that the daemon answered with, or `DaemonLostError`.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
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

    def delete(self, path: str) -> Any:
        """Remove what is at *path* and return the JSON answer."""
        return self._json("DELETE", path, None)

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the daemon accepts work, and what it waits for; as `Service.readiness`."""
        with self._answer("GET", "/readyz", None, refusals=(503,)) as response:
            return response.status == 200, json.loads(response.read())

    def chat(self, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the chunks of a streamed chat completion.

        Closing the iterator stops the computation.

        Raises:
            DaemonLostError: the stream ended without its end.
        """
        with self._answer("POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            for _, data in _events(response):
                if data == b"[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise _error(chunk)
                yield chunk
        raise self._lost("it ended in the middle of the answer")

    def feed(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events of long work: ``job`` with its id, ``progress`` ones, at last a ``done``.

        The work goes on when the iterator is closed.

        Raises:
            DaemonLostError: the stream ended before the work did.
        """
        with self._answer("POST", path, body) as response:
            yield "job", {"id": response.getheader("X-JetLLM-Job")}
            for kind, data in _events(response):
                value = json.loads(data)
                if kind == "error":
                    raise _error(value)
                yield kind, value
                if kind == "done":
                    return
        raise self._lost("it ended before the work was done")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        with self._answer(method, path, body) as response:
            return json.loads(response.read())

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, refusals: tuple[int, ...] = ()
    ) -> Iterator[http.client.HTTPResponse]:
        """Open the answer; whatever breaks while it is read means that the daemon is lost."""
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        # The response keeps the socket open until it is closed itself.
        headers = {**self._headers, "Connection": "close"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as response:
                if response.status >= 400 and response.status not in refusals:
                    raise _error(_parse(response.read(), response.status))
                yield response
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(f"it does not answer: {error or type(error).__name__}") from None
        except ValueError:
            raise self._lost("it ended in the middle of its answer, or is not JetLLM") from None
        finally:
            connection.close()

    def _lost(self, why: str) -> DaemonLostError:
        return DaemonLostError(f"the daemon at {self.url} is lost: {why}", hint=_NEXT_STEP)


def path_of(model: str, work: str = "") -> str:
    """Return the path of a model's resource; a name may hold slashes."""
    return f"/jetllm/v1/models/{quote(model, safe='/')}{f'/{work}' if work else ''}"


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, bytes]]:
    """Yield kind and data of server-sent events; comments say nothing."""
    kind = ""
    for line in response:
        name, _, value = line.rstrip(b"\r\n").partition(b": ")
        if name == b"event":
            kind = value.decode()
        elif name == b"data":
            yield kind, value
            kind = ""


def _parse(data: bytes, status: int) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return {"error": {"message": f"HTTP status {status}"}}


def _error(answer: Any) -> JetLLMError:
    error = answer.get("error", {}) if isinstance(answer, dict) else {}
    if not isinstance(error, dict):
        return JetLLMError(str(error))
    if error.get("code") == KeyRefusedError.code:
        return KeyRefusedError(str(error.get("message")), hint=_KEY_HINT)
    return from_dict(error)

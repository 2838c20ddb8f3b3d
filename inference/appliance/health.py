"""The health of a daemon, asked over HTTP with a time limit for every question."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.appliance.config import Config
from inference.appliance.errors import NotReadyError
from inference.appliance.layout import Layout

PROBE_TIMEOUT_S = 5.0
CANARY_TIMEOUT_S = 120.0
_CANARY_PROMPT = "Say one word."
_MAX_ANSWER_BYTES = 4 * 2**20
_HINT = "what the daemon said: journalctl -u jetllm"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where such a daemon is reached from here


class KeyRefusedError(NotReadyError):
    """The daemon wants an API key, and this is not one that it takes."""

    code = "not_ready_key"


@dataclass(frozen=True)
class Daemon:
    """The daemon that is published on *host* and *port*.

    Args:
        host: as it is published; "0.0.0.0" and "::" are asked on loopback.
        key: an API key; ``None`` where none is asked for.
    """

    host: str
    port: int
    key: str | None = None

    def live(self) -> bool:
        """Whether it answers at all."""
        try:
            return self._ask("GET", "/livez", None, PROBE_TIMEOUT_S)[0] == 200
        except NotReadyError:
            return False

    def ready(self, *, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[bool, dict[str, Any]]:
        """Whether it accepts work, and what it waits for.

        Returns:
            The daemon's own words: ``{"status", "phase", "percent", "reason"}``; one that does not
            answer has the status "unreachable".
        """
        try:
            status, answer = self._ask("GET", "/readyz", None, timeout_s)
        except NotReadyError as error:
            return False, {"status": "unreachable", "phase": None, "percent": None, "reason": error.message}
        return status == 200, answer

    def canary(self, model: str | None = None, *, timeout_s: float = CANARY_TIMEOUT_S) -> str:
        """Ask for one token and return it; by default of the model that the daemon selects.

        Raises:
            NotReadyError: it did not come.
        """
        messages = [{"role": "user", "content": _CANARY_PROMPT}]
        choice = self._generate(
            "/v1/chat/completions", {"model": model or "auto", "messages": messages}, 1, timeout_s
        )
        return str(choice["message"].get("content") or "")

    def complete(self, model: str, prompt: str, tokens: int, *, timeout_s: float = CANARY_TIMEOUT_S) -> str:
        """Return how *model* goes on with *prompt*, given as it is: greedily, at most *tokens* tokens.

        Raises:
            NotReadyError: it did not come.
        """
        choice = self._generate("/v1/completions", {"model": model, "prompt": prompt}, tokens, timeout_s)
        return str(choice["text"])

    def _generate(
        self, path: str, question: Mapping[str, Any], tokens: int, timeout_s: float
    ) -> Mapping[str, Any]:
        """Return the one choice of a greedy answer that has a token at least."""
        body = {**question, "max_tokens": tokens, "temperature": 0}
        status, answer = self._ask("POST", path, body, timeout_s)
        if status in (401, 403):
            raise KeyRefusedError(f"{self._name} refused the key: {_reason(answer)}", hint=_HINT)
        if status != 200:
            raise NotReadyError(f"{self._name} answered {status} for a token: {_reason(answer)}", hint=_HINT)
        with suppress(KeyError, IndexError, TypeError):
            choice, counts = answer["choices"][0], answer["usage"]
            if counts["completion_tokens"] > 0 and ("text" in choice or "content" in choice["message"]):
                found: Mapping[str, Any] = choice
                return found
        raise NotReadyError(f"{self._name} answered without a token", hint=_HINT)

    @property
    def _name(self) -> str:
        return f"the daemon on port {self.port}"

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of one answer.

        Raises:
            NotReadyError: no answer within *timeout_s*, or none that is a JSON object.
        """
        connection = http.client.HTTPConnection(
            _LOOPBACK.get(self.host, self.host), self.port, timeout=timeout_s
        )
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as response:
                answer = json.loads(response.read(_MAX_ANSWER_BYTES))
                if isinstance(answer, dict):
                    return response.status, answer
                raise NotReadyError(f"{self._name} answered {path} with something else than JSON's object")
        except TimeoutError:
            raise NotReadyError(
                f"{self._name} did not answer {path} within {timeout_s:g} s", hint=_HINT
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            what = getattr(error, "strerror", None) or type(error).__name__
            raise NotReadyError(f"{self._name} does not answer {path}: {what}", hint=_HINT) from None
        finally:
            connection.close()


def key_path(layout: Layout) -> Path:
    """Return where the supervisor's own key is, readable by its user and root alone."""
    return layout.run / "key"


def supervised_daemon(config: Config, layout: Layout) -> Daemon:
    """Return the daemon that the supervisor of this machine runs, with the supervisor's own key.

    The key stays the same until the next boot, also over a restart of the unit; before the first
    start there is none.
    """
    try:
        key = key_path(layout).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return Daemon(config.host, config.port)
    return Daemon(config.host, config.port, key or None)


def _reason(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    text = error.get("message") if isinstance(error, dict) else answer.get("reason")
    return str(text or "no reason given")[:300]

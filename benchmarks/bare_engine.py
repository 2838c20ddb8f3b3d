"""llama.cpp in a process of its own, as bare as it can be called from Python.

Reads one JSON command a line from standard input, answers one JSON line:
``{"streams": [{"prompt": str, "max_tokens": n}, ...]}`` runs the streams at once and answers
``[[first_s, last_s, tokens, asked_s], ...]`` on the monotonic clock.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from inference.backends import LoadOptions
from inference.backends.llamacpp import Backend


def main() -> None:
    """Load what the first line says, then serve."""
    options = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as directory:
        backend = Backend(LoadOptions.from_dict({**options, "runtime_dir": directory}))
        _answer("ready")
        for line in sys.stdin:
            _answer(_run(backend._server, json.loads(line)["streams"]))
        Path(directory, "engine.sock").unlink(missing_ok=True)


def _answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _run(server: Any, streams: list[dict[str, Any]]) -> list[list[float]]:
    results: list[list[float]] = [[] for _ in streams]

    def one(index: int, stream: dict[str, Any]) -> None:
        times: list[float] = []

        def take(chunk: Any) -> bool:
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
            return False

        body = {
            "messages": [{"role": "user", "content": stream["prompt"]}],
            "max_tokens": stream["max_tokens"],
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": False,
        }
        asked_s = time.monotonic()
        server.handle_chat_completions(body, take)
        results[index] = [times[0], times[-1], len(times), asked_s]

    threads = [threading.Thread(target=one, args=item) for item in enumerate(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


if __name__ == "__main__":
    main()

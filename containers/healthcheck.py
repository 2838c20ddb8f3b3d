"""The image's health check: ends with 0 when the daemon in this container is ready, else with 1 and why."""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT_S = 4.0
_SHOWN_BYTES = 300


def main() -> int:
    """Ask /readyz on the port that the daemon was told."""
    # HTTPConnection and not urllib: a proxy in the environment is not asked.
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("JETLLM_PORT", "8080")), timeout=_TIMEOUT_S
    )
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        said = response.read(_SHOWN_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"no answer: {error}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"{response.status} {said}\n")
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

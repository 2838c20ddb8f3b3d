"""The proxy: what the environment says stands between this machine and a host, as for pip and the hub."""

from __future__ import annotations

import base64
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_PORT = 80


@dataclass(frozen=True)
class Proxy:
    """A proxy that is spoken to in plain HTTP.

    Args:
        headers: who asks it, where its address has a name and a password.
    """

    host: str
    port: int
    headers: Mapping[str, str]


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy for requests to *host*; ``None``: it is asked directly.

    The variables are HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in either case.

    Raises:
        ValueError: the proxy is of a kind that is not spoken here.
    """
    proxies = urllib.request.getproxies_environment()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(f"{host}:{port}", proxies):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"a proxy of the kind {parts.scheme}://")
    headers = {}
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
    return Proxy(parts.hostname, parts.port or _PORT, headers)

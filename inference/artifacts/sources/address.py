"""The address: which hosts a download may reach, decided on the number that is then connected to.

A name is resolved once and its addresses are checked before they are used, so that neither a name
that points inwards nor a redirect makes the appliance ask a machine of its own network.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from inference.artifacts.sources.aside import aside

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], list[str]]


def is_reachable(text: str, *, local: bool | None) -> bool:
    """Tell whether a download may connect to an address.

    Args:
        local: whether the file is on this machine or in its own network; public addresses are refused
            then, and private ones otherwise; with ``None`` neither. Link-local ones are always: cloud
            metadata lives there.
    """
    address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
    if address is None or address.is_multicast or address.is_link_local or address.is_unspecified:
        return False
    return local is None or address.is_global is not local


def is_literal(host: str) -> bool:
    """Tell whether a host is an address and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _embedded(address: _Address) -> _Address | None:
    """Return the IPv4 address that an IPv6 one stands for, else itself; ``None`` for tunnels."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.sixtofour is not None or address.teredo is not None:
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of *host*, in the system's order.

    Raises:
        OSError: it has none, or nobody answers.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def resolved(
    host: str, port: int, resolve: Resolve, *, poll_s: float, waiting: Callable[[], None]
) -> list[str]:
    """Call *resolve* aside: the system's resolver cannot be interrupted, and ends with its time-out."""
    return aside(lambda: resolve(host, port), f"resolve {host}", poll_s=poll_s, waiting=waiting)

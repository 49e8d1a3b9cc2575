"""The network interfaces of the workspace, as its clients want to see them (terminal-ssh-http.md §4.3)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

LEAST_MTU: Final = 1378
"""What the tailnet's largest packet needs with its WireGuard, UDP and IPv6 heads."""


class InterfacesError(Exception):
    """The interfaces could not be listed; the text says why."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One that is up; `addresses` are `address/prefix length`."""

    name: str
    mtu: int
    addresses: Sequence[str]


def report(interfaces: Iterable[Interface]) -> dict[str, Any]:
    """Those that may reach somebody, and a warning for each whose packets are too small for the tailnet."""
    shown = [item for item in interfaces if not all(map(_link_local, item.addresses))]
    warnings = [
        {
            "code": "EIF01",
            "message": f"Network interface {item.name} has MTU {item.mtu}, less than {LEAST_MTU}: direct connections"
            " through it may be slow or fail.",
        }
        for item in shown
        if 0 < item.mtu < LEAST_MTU
    ]
    return {
        "severity": "warning" if warnings else "ok",
        "warnings": warnings or None,
        "dismissed": False,
        "interfaces": [{"name": item.name, "mtu": item.mtu, "addresses": list(item.addresses)} for item in shown]
        or None,
    }


def netcheck(net_info: Mapping[str, Any] | None) -> dict[str, Any]:
    """The whole answer. Blocks for a moment; raises `InterfacesError`."""
    return {
        "severity": "ok",
        "warnings": None,
        "dismissed": False,
        "net_info": net_info,
        "interfaces": report(_here()),
    }


def _link_local(address: str) -> bool:
    return ipaddress.ip_interface(address).is_link_local


def _here() -> list[Interface]:
    """The interfaces of this machine that are up."""
    import socket

    import psutil

    try:
        states, addresses = psutil.net_if_stats(), psutil.net_if_addrs()
    except (OSError, psutil.Error) as error:
        raise InterfacesError(str(error)) from error
    return [
        Interface(
            name,
            states[name].mtu,
            [
                _with_prefix(entry.address, entry.netmask)
                for entry in entries
                if entry.family in (socket.AF_INET, socket.AF_INET6)
            ],
        )
        for name, entries in addresses.items()
        if name in states and states[name].isup
    ]


def _with_prefix(address: str, mask: str | None) -> str:
    """`10.0.0.2/24` of an address and a mask as psutil tells them; without a mask it is a single address."""
    bare = ipaddress.ip_address(address.partition("%")[0])
    bits = int(ipaddress.ip_address(mask)).bit_count() if mask else bare.max_prefixlen
    return f"{bare}/{bits}"

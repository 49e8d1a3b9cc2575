"""Which proxy the environment names for a URL: `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, as Go programs read them.

The standard library's reading knows no address ranges in `NO_PROXY`, and sends loopback traffic to the proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from yarl import URL


class ProxyError(ValueError):
    """A proxy variable cannot be used. The text names the variable, and not its value, which may hold a password."""


def proxy_for(url: URL, environment: Mapping[str, str]) -> URL | None:
    """The proxy for a request to `url`, None for a direct connection. Raises `ProxyError`."""
    host = (url.host or "").rstrip(".").lower()
    port = str(url.port or "")
    if is_loopback(host) or _excluded(host, port, _variable("NO_PROXY", environment)[1]):
        return None
    variable, text = _variable("HTTPS_PROXY" if url.scheme in ("https", "wss") else "HTTP_PROXY", environment)
    if not text:
        return None
    try:
        proxy = URL(text if "://" in text else f"http://{text}")
        usable = is_host(proxy.host)
    except ValueError:
        usable = False
    if not usable:
        raise ProxyError(f"{variable} is not the URL of a proxy; write it like http://proxy.example.com:3128")
    if proxy.scheme not in ("http", "https"):
        raise ProxyError(f"{variable} names a {proxy.scheme} proxy; only http and https proxies are supported")
    return proxy


def is_loopback(host: str) -> bool:
    """Whether the name or address means this machine."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_host(host: str | None) -> bool:
    """Whether a name or address can be looked up. Raises `ValueError` for some that cannot."""
    if not host or any(character.isspace() for character in host):
        return False
    return bool(host.encode("idna"))  # as the resolver will do it: "a..b" cannot be


def _variable(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    for candidate in (name, name.lower()):
        if text := environment.get(candidate, "").strip():
            return candidate, text
    return name, ""


def _excluded(host: str, port: str, no_proxy: str) -> bool:
    return any(_matches(entry.strip().lower(), host, port) for entry in no_proxy.split(","))


def _matches(entry: str, host: str, port: str) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    if _address(entry) is None:
        entry, colon, only_port = entry.rpartition(":") if ":" in entry else (entry, "", "")
        if colon and only_port != port:
            return False
    if address is not None or not entry:
        return address is not None and address == _address(entry)
    entry = entry.removeprefix("*")
    return host == entry or host.endswith(entry if entry.startswith(".") else f".{entry}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None

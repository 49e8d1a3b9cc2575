"""What becomes of the headers of requests and answers on their way between a browser and a workspace. Without I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import hdrs
from multidict import CIMultiDict

from agent.server.auth import COOKIE as SESSION_COOKIE
from agent.server.auth import HEADER as SESSION_HEADER
from agent.server.http import SAFE_METHODS
from agent.server.ports.origins import COOKIE, Origin

RawHeaders = Iterable[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
# What the proxy says itself, or has answered already; and what is nobody else's business.
_NOT_TO_WORKSPACE: Final = frozenset(
    {"host", "expect", "forwarded", "x-real-ip", SESSION_HEADER.lower()}
    | {f"x-forwarded-{what}" for what in ("for", "host", "proto", "port", "server", "ssl", "prefix")}
)
# The first would take the control plane's cookies away, too; the second names hosts as the workspace sees them.
_NOT_TO_BROWSER: Final = frozenset({"clear-site-data", "alt-svc"})
_LOCATIONS: Final = frozenset({"location", "content-location"})
_PREFIX: Final = re.compile(r"__(?:host|secure|http|host-http)-", re.ASCII)
_REFRESH: Final = re.compile(r"(\s*[0-9.]+\s*[;,]?\s*(?:url\s*=)?\s*[\"']?)(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_LOCAL: Final = re.compile(
    r"(?:http:)?//(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\]|\[::\])(?::([0-9]{1,5}))?(?=[/?#]|$)",
    re.ASCII | re.IGNORECASE,
)


def to_workspace(raw: RawHeaders, origin: Origin, remote: str, *, websocket: bool) -> CIMultiDict[str]:
    """A request's headers. `remote` is the address that it came from; `websocket` keeps the wish for an upgrade."""
    given = _without_hops(raw)
    local = local_url(origin)
    kept: CIMultiDict[str] = CIMultiDict({hdrs.HOST: f"localhost:{origin.port}"})
    for name, value in given:
        lower = name.lower()
        if lower in _NOT_TO_WORKSPACE:
            continue
        if lower == "cookie":
            value = without_our_cookies(value)
            if not value:
                continue
        elif lower == "origin" and value == origin.url:
            value = local
        elif lower == "referer" and (value == origin.url or value.startswith(f"{origin.url}/")):
            value = local + value.removeprefix(origin.url)
        kept.add(name, value)
    kept["X-Forwarded-Host"] = origin.netloc
    kept["X-Forwarded-Proto"] = origin.scheme
    kept["X-Forwarded-Port"] = str(origin.listening_port)
    kept["X-Forwarded-For"] = remote
    if websocket:
        kept[hdrs.CONNECTION] = "Upgrade"
        kept[hdrs.UPGRADE] = "websocket"
    return kept


def to_browser(raw: RawHeaders, origin: Origin) -> CIMultiDict[str]:
    """An answer's headers."""
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in _without_hops(raw):
        lower = name.lower()
        if lower in _NOT_TO_BROWSER:
            continue
        if lower == "set-cookie":
            cookie = harmless_cookie(value)
            if cookie is None:
                continue
            value = cookie
        elif lower in _LOCATIONS:
            value = _to_origin(value, origin)
        elif lower == "refresh":
            delay = _REFRESH.fullmatch(value)
            if delay is not None:
                value = delay[1] + _to_origin(delay[2], origin)
        kept.add(name, value)
    return kept


def wants_websocket(headers: Mapping[str, str], method: str) -> bool:
    """Other upgrades are not passed on."""
    tokens = {token.strip().lower() for token in headers.get(hdrs.CONNECTION, "").split(",")}
    return method == "GET" and "upgrade" in tokens and headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"


def is_foreign(headers: Mapping[str, str], method: str, origin: Origin) -> bool:
    """Whether a request comes from a page that has no business here, of another port, say.

    A foreign page may link here, and may ask what the workspace allows it by CORS, if that changes nothing. It may not
    change anything, open WebSockets, show this in a frame, or include it as a script or an image.
    """
    acts = method not in SAFE_METHODS or wants_websocket(headers, method)
    site = headers.get("Sec-Fetch-Site", "same-origin").lower()
    if acts and headers.get(hdrs.ORIGIN, origin.url) != origin.url:
        return True
    if site in ("same-origin", "none"):
        return False
    mode, target = headers.get("Sec-Fetch-Mode", "").lower(), headers.get("Sec-Fetch-Dest", "").lower()
    return acts or mode == "no-cors" or (mode == "navigate" and target != "document")


def local_url(origin: Origin) -> str:
    """How programs in the workspace call the port."""
    return f"http://localhost:{origin.port}"


def is_ours(cookie: str) -> bool:
    """Whether a cookie of that name is the session's or one of our passes, of whatever origin."""
    name = _PREFIX.sub("", cookie.strip().lower(), count=1)
    return name.startswith((SESSION_COOKIE, COOKIE))


def without_our_cookies(header: str) -> str:
    """A `Cookie` header without ours; the others as they were."""
    return ";".join(part for part in header.split(";") if not is_ours(part.partition("=")[0])).strip()


def harmless_cookie(header: str) -> str | None:
    """A `Set-Cookie` header that stays with its own host; None when it must not be set at all.

    A cookie without a name is sent back as its bare value, which could read as one of ours.
    """
    pair, *attributes = header.split(";")
    name, equals, _ = pair.partition("=")
    if not equals or not name.strip() or is_ours(name):
        return None
    return ";".join([pair, *(item for item in attributes if item.partition("=")[0].strip().lower() != "domain")])


def _to_origin(url: str, origin: Origin) -> str:
    found = _LOCAL.match(url)
    if found is None or int(found[1] or 80) != origin.port:
        return url
    return origin.url + url[found.end() :]


def _without_hops(raw: RawHeaders) -> list[tuple[str, str]]:
    given = [(_text(name), _text(value)) for name, value in raw]
    named = {
        token.strip().lower() for name, value in given if name.lower() == "connection" for token in value.split(",")
    }
    # What would end a header early has no business in one, and would be refused when it is written.
    return [
        (name, value)
        for name, value in given
        if name.lower() not in _HOP_BY_HOP | named and not any(sign in value for sign in "\r\n\0")
    ]


def _text(raw: bytes) -> str:
    """Headers go on as UTF-8. What is none was meant as ISO 8859-1."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")

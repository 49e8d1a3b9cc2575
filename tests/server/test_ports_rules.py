"""Headers, origins and addresses of ports, without any server."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.server.config import ServerConfig, ServerConfigError
from agent.server.ports import WildcardOrigins
from agent.server.ports.headers import (
    harmless_cookie,
    is_foreign,
    is_ours,
    to_browser,
    to_workspace,
    without_our_cookies,
)
from agent.server.ports.origins import Origin

AGENT = UUID("c4e0c1f5-0000-4000-8000-000000000001")
ORIGIN = Origin(AGENT, 8080, "https", f"8080--{AGENT}.ws.example.com")
SECRETS = ("coder_session_token", "__Host-workspace_port_443", "workspace_port_34567", "CODER_SESSION_TOKEN")

names = st.sampled_from([*SECRETS, "theirs", "a", "", " coder_session_token ", "\tworkspace_port_1"]) | st.text(
    max_size=8
)
values = st.text(max_size=20)
bytes_pairs = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Cookie", b"cookie", b"Set-Cookie", b"Connection", b"Location", b"Refresh", b"X-A", b"Origin"]
        ),
        st.binary(max_size=60),
    ),
    max_size=8,
)


def read_cookies(header: str) -> list[str]:
    """The names in a `Cookie` header, as programs read it."""
    return [part.partition("=")[0].strip() for part in header.split(";") if part.strip()]


@given(st.lists(st.tuples(names, values)))
def test_no_cookie_of_ours_passes(cookies: list[tuple[str, str]]) -> None:
    left = without_our_cookies("; ".join(f"{name}={value}" for name, value in cookies))
    for name in read_cookies(left):
        assert "coder_session_token" not in name.lower()
        assert not name.lower().removeprefix("__host-").startswith("workspace_port")


@given(st.lists(st.sampled_from(["a=1", "b=2=3", 'c="x"', "d"]), max_size=4), st.sampled_from(SECRETS))
def test_other_cookies_stay_as_they_are(cookies: list[str], secret: str) -> None:
    assert without_our_cookies("; ".join([f"{secret}=x", *cookies])) == "; ".join(cookies)
    assert without_our_cookies("; ".join(cookies)) == "; ".join(cookies)


@given(names, values, st.lists(st.sampled_from(["Path=/", "Domain=example.com", " DOMAIN = .x", "Secure", "domain"])))
def test_what_a_workspace_may_set(name: str, value: str, attributes: list[str]) -> None:
    cookie = harmless_cookie("; ".join([f"{name}={value}", *attributes]))
    if cookie is None:
        return
    pair, *rest = cookie.split(";")
    assert "=" in pair
    assert pair.partition("=")[0].strip()
    assert not is_ours(pair.partition("=")[0])
    assert not [item for item in rest if item.partition("=")[0].strip().lower() == "domain"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a=1; Domain=example.com; HttpOnly", "a=1; HttpOnly"),
        ("a=1;domain=x;DoMaIn=y;Path=/", "a=1;Path=/"),
        ("coder_session_token=x", None),
        ("=coder_session_token=x", None),
        ("coder_session_token", None),
        (" Coder_Session_Token =x", None),
        ("__Host-workspace_port_443=x", None),
        ("__Host-theirs=x; Secure; Path=/", "__Host-theirs=x; Secure; Path=/"),
        ("a=b; Comment=Domain", "a=b; Comment=Domain"),
    ],
)
def test_cookies_of_workspaces(given: str, kept: str | None) -> None:
    assert harmless_cookie(given) == kept


@given(bytes_pairs)
@example([(b"Connection", b"cookie, x-a"), (b"Cookie", b"a=1"), (b"X-A", b"1")])
@example([(b"X-A", b"a\r\nSet-Cookie: coder_session_token=x")])
def test_whatever_comes_can_be_written(raw: list[tuple[bytes, bytes]]) -> None:
    for kept in (to_workspace(raw, ORIGIN, "192.0.2.1", websocket=False), to_browser(raw, ORIGIN)):
        for name, value in kept.items():
            assert not set("\r\n\0") & set(name + value)
            value.encode()
    sent = to_workspace(raw, ORIGIN, "192.0.2.1", websocket=True)
    assert sent.getall("Host") == ["localhost:8080"]
    assert sent.getall("Connection") == ["Upgrade"]
    assert sent.getall("X-Forwarded-Proto") == ["https"]
    assert not [name for cookie in sent.getall("Cookie", []) for name in read_cookies(cookie) if is_ours(name)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://localhost:8080/a?b#c", f"{ORIGIN.url}/a?b#c"),
        ("HTTP://127.0.0.1:8080", ORIGIN.url),
        ("//[::1]:8080/x", f"{ORIGIN.url}/x"),
        ("http://0.0.0.0:8080?x", f"{ORIGIN.url}?x"),
        ("http://localhost:8081/", "http://localhost:8081/"),
        ("http://localhost/", "http://localhost/"),
        ("http://localhost:8080.evil.example/", "http://localhost:8080.evil.example/"),
        ("http://localhost:8080@evil.example/", "http://localhost:8080@evil.example/"),
        ("https://localhost:8080/", "https://localhost:8080/"),
        ("/relative", "/relative"),
        ("", ""),
    ],
)
def test_addresses_of_the_workspace_become_the_origin(given: str, kept: str) -> None:
    raw = [(b"Location", given.encode()), (b"Content-Location", given.encode())]
    assert list(to_browser(raw, ORIGIN).values()) == [kept, kept]
    for delay in ("5; url=", "0;URL='", "1.5, ", "3;url = "):
        refresh = to_browser([(b"Refresh", f"{delay}{given}".encode())], ORIGIN)["Refresh"]
        assert refresh in (delay + kept, f"{delay}{kept}".strip())


def test_port_80_needs_no_number() -> None:
    origin = Origin(AGENT, 80, "http", "localhost:40000")
    assert to_browser([(b"Location", b"http://localhost/x")], origin)["Location"] == "http://localhost:40000/x"


def test_texts_that_are_no_utf8() -> None:
    assert to_browser([(b"X-A", b"caf\xe9"), (b"X-B", "é€".encode())], ORIGIN) == {"X-A": "café", "X-B": "é€"}


WEBSOCKET = {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"}
FETCH = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("method", "headers", "foreign"),
    [
        ("GET", {}, False),
        ("POST", {}, False),
        ("POST", {"Origin": ORIGIN.url}, False),
        ("POST", {"Origin": ORIGIN.url.upper()}, True),
        ("POST", {"Origin": "null"}, True),
        ("POST", {"Origin": ORIGIN.url.replace("https", "http")}, True),
        ("DELETE", {"Origin": f"{ORIGIN.url}:8443"}, True),
        ("GET", WEBSOCKET, False),
        ("GET", {**WEBSOCKET, "Origin": "https://evil.example"}, True),
        ("GET", {"Origin": "https://evil.example", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "cross-site"}, False),
        ("GET", FETCH, True),
        ("GET", LINK, False),
        ("POST", LINK, True),
        ("GET", {**LINK, "Sec-Fetch-Dest": "iframe"}, True),
        ("GET", {**LINK, "Sec-Fetch-Dest": "iframe", "Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_foreign_pages(method: str, headers: dict[str, str], foreign: bool) -> None:
    from multidict import CIMultiDict

    assert is_foreign(CIMultiDict(headers), method, ORIGIN) is foreign


# ---- origins


@given(st.integers(9, 65535), st.uuids(), st.sampled_from(["", ":443", ":8443"]))
def test_a_wildcard_host_names_its_port(port: int, agent: UUID, number: str) -> None:
    origins = WildcardOrigins("https://*.WS.example.com")
    origin = origins.find(f"{port}--{agent}.ws.example.com{number}".upper())
    assert origin is not None
    assert (origin.agent, origin.port, origin.url) == (agent, port, f"https://{port}--{agent}.ws.example.com")
    assert origin.cookie == "__Host-workspace_port_443"
    assert len(origin.netloc.partition(".")[0]) <= 63


@given(st.text(max_size=80) | st.from_regex(r"[0-9]{0,6}-{1,3}[0-9a-f-]{30,40}\.ws\.example\.com", fullmatch=True))
def test_other_hosts_name_none(host: str) -> None:
    origins = WildcardOrigins("https://*.ws.example.com")
    origin = origins.find(host)
    assert origin is None or origin.netloc == host.lower().partition(":")[0]


@pytest.mark.parametrize("port", ["0", "1", "8", "08", "65536", "99999"])
def test_ports_that_have_no_host(port: str) -> None:
    origins = WildcardOrigins("http://*.ws.example.com:8000")
    assert origins.covers(f"{port}--{AGENT}.ws.example.com:8000")
    assert origins.find(f"{port}--{AGENT}.ws.example.com:8000") is None
    assert not origins.covers("ws.example.com:8000")
    assert not origins.covers("evil-ws.example.com")


async def test_a_wildcard_host_with_a_port() -> None:
    origin = await WildcardOrigins("http://*.ws.example.com:8000").open(AGENT, 3000, "")
    assert origin.url == f"http://3000--{AGENT}.ws.example.com:8000"
    assert origin.cookie == "workspace_port_8000"


@pytest.mark.parametrize(
    ("url", "access"),
    [
        ("https://ws.example.com", ""),
        ("https://*", ""),
        ("https://*.", ""),
        ("https://a.*.example.com", ""),
        ("https://*.example.com/path", ""),
        ("https://user@*.example.com", ""),
        ("https://*.example.com:99999", ""),
        ("ftp://*.example.com", ""),
        ("*.example.com", ""),
        ("https://*.example.com", "https://workspaces.example.com"),
        ("https://*.example.com", "https://example.com:8443"),
    ],
)
def test_workspace_urls_that_cannot_be(url: str, access: str, tmp_path: Path) -> None:
    with pytest.raises(ServerConfigError, match="workspace URL"):
        ServerConfig(data_dir=tmp_path, workspace_url=url, access_url=access)


def test_workspace_urls(tmp_path: Path) -> None:
    for url in ("https://*.ws.example.net", "http://*.localhost:7080", "https://*.Example.net/"):
        assert ServerConfig(data_dir=tmp_path, workspace_url=url, access_url="https://example.com").workspace_url == url

"""What is asked of Google and Microsoft, and how often."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.server.identity import fetch
from agent.server.identity.fetch import (
    Answer,
    FetchError,
    HttpGet,
    IssuerFetcher,
    KeySource,
    PublicResolver,
    is_issuer_url,
    is_public,
    keep_for,
)
from agent.testing import ManualClock
from agent.testing.clock import settle
from tests.server.identity.clouds import Google, issue, rsa_key

URL = "http://www.microsoft.com/pkiops/certs/issuer.crt"


class Web:
    """Answers requests from a table, and remembers them."""

    def __init__(self, pages: Mapping[str, Answer | Exception] | None = None) -> None:
        self.pages: dict[str, Answer | Exception] = dict(pages or {})
        self.asked: list[str] = []

    async def __call__(self, url: str) -> Answer:
        self.asked.append(url)
        page = self.pages.get(url, FetchError(f"{url} answers with status 404"))
        if isinstance(page, Exception):
            raise page
        return page


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        (URL, True),
        ("https://cacerts.digicert.com/DigiCertGlobalRootG2.crt", True),
        ("http://www.microsoft.com:80/x", True),
        ("https://www.microsoft.com:443/x", True),
        ("http://WWW.Microsoft.com/x", True),
        ("http://www.microsoft.com:8080/x", False),
        ("http://evil.com/x", False),
        ("http://www.microsoft.com.evil.com/x", False),
        ("http://www.microsoft.com@evil.com/x", False),
        ("http://user@www.microsoft.com/x", False),
        ("ftp://www.microsoft.com/x", False),
        ("file:///etc/passwd", False),
        ("ldap://www.microsoft.com/x", False),
        ("//www.microsoft.com/x", False),
        ("http://www.microsoft.com:x/", False),
        ("http://[::1/", False),
        ("http://www.microsoft.com/\r\nX: y", False),
        ("http://www.microsoft.com/" + "x" * 1024, False),
        ("", False),
    ],
)
def test_addresses_of_issuers(url: str, allowed: bool) -> None:
    assert is_issuer_url(url) is allowed


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("20.1.2.3", True),
        ("2603:1020::1", True),
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:20.1.2.3", True),
        ("2002:0a00:0001::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::169.254.169.254", False),
        ("64:ff9b::20.1.2.3", True),
        ("x", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_names_with_private_addresses_are_not_found() -> None:
    with pytest.raises(OSError, match="localhost has no public address"):
        await PublicResolver().resolve("localhost", 80, socket.AF_INET)
    with pytest.raises(FetchError, match="no public address"):
        await HttpGet(public=True)("http://localhost:1/x")


async def test_issuers_are_fetched_once() -> None:
    authority = issue("issuer", rsa_key(3))
    pages = Web({URL: Answer(authority.der), URL + "2": Answer(authority.pem)})
    clock = ManualClock()
    issuers = IssuerFetcher(pages, clock)
    for _ in range(3):
        assert await issuers.fetch([URL, "http://evil.com/x", URL + "2"]) == [authority.certificate] * 2
        await clock.advance(fetch.RETRY_PERIOD)
    assert pages.asked == [URL, URL + "2"]


@pytest.mark.parametrize("page", [Answer(b""), Answer(b"<html>"), Answer(b"-----BEGIN"), FetchError("away")])
async def test_an_issuer_that_cannot_be_had_is_asked_for_seldom(page: Answer | Exception) -> None:
    pages, clock = Web({URL: page}), ManualClock()
    issuers = IssuerFetcher(pages, clock)
    for _ in range(5):
        assert await issuers.fetch([URL]) == []
    assert pages.asked == [URL]
    await clock.advance(fetch.RETRY_PERIOD)
    await issuers.fetch([URL])
    assert pages.asked == [URL] * 2


async def test_many_addresses_are_not_tried_at_once() -> None:
    pages, clock = Web(), ManualClock()
    issuers = IssuerFetcher(pages, clock)
    for number in range(200):
        await issuers.fetch([f"{URL}?{number}"])
    assert len(pages.asked) == fetch.MAX_ISSUERS
    await clock.advance(fetch.RETRY_PERIOD)
    await issuers.fetch([f"{URL}?new"])
    assert len(pages.asked) == fetch.MAX_ISSUERS + 1


async def test_slow_issuers_are_not_waited_for() -> None:
    clock, begun = ManualClock(), []

    async def never(url: str) -> Answer:
        begun.append(url)
        await asyncio.Event().wait()
        raise AssertionError

    issuers = IssuerFetcher(never, clock)
    waiting = [asyncio.create_task(issuers.fetch([URL])) for _ in range(3)]
    await settle()
    await clock.advance(fetch.TIMEOUT)
    assert [await task for task in waiting] == [[], [], []]
    assert begun == [URL]
    assert await issuers.fetch([URL]) == [], "the lock is free again"


async def test_an_issuer_that_is_known_waits_for_no_other() -> None:
    """Or whoever names a slow address would keep genuine machines out."""
    authority, release = issue("issuer", rsa_key(3)), asyncio.Event()

    async def get(url: str) -> Answer:
        if url != URL:
            await release.wait()
        return Answer(authority.der)

    issuers = IssuerFetcher(get, ManualClock())
    assert await issuers.fetch([URL])
    slow = asyncio.create_task(issuers.fetch([f"{URL}?slow"]))
    await settle()
    known = asyncio.create_task(issuers.fetch([URL]))
    await settle()
    assert known.done()
    release.set()
    assert await slow == await known == [authority.certificate]


async def test_cancelling_a_fetch_lets_the_next_one_in() -> None:
    async def never(_: str) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    issuers = IssuerFetcher(never, ManualClock())
    task = asyncio.create_task(issuers.fetch([URL]))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await issuers.fetch([URL]) == []


async def test_keys_are_kept_as_long_as_the_answer_says() -> None:
    cloud, clock = Google(), ManualClock()
    pages = Web({"keys": Answer(cloud.key_set(), {"cache-control": "public, max-age=600", "age": "100"})})
    keys = KeySource(pages, "keys", clock)
    for _ in range(3):
        assert await keys.key("one") == cloud.rsa.public_key()
    await clock.advance(499)
    await keys.key("one")
    assert len(pages.asked) == 1
    await clock.advance(1)
    await keys.key("one")
    assert len(pages.asked) == 2


async def test_an_unknown_key_is_asked_for_but_not_again_and_again() -> None:
    cloud, clock = Google(), ManualClock()
    pages = Web({"keys": Answer(cloud.key_set(), {"cache-control": "max-age=86400"})})
    keys = KeySource(pages, "keys", clock)
    await keys.key("one")
    await clock.advance(fetch.KEYS_RETRY_PERIOD)
    for number in range(50):
        with pytest.raises(FetchError, match="no key has the id that the token names"):
            await keys.key(f"forged {number}")
    assert len(pages.asked) == 2
    pages.pages["keys"] = Answer(cloud.key_set().replace(b'"one"', b'"new"'))
    await clock.advance(fetch.KEYS_RETRY_PERIOD)
    assert await keys.key("new") == cloud.rsa.public_key()


async def test_a_key_that_is_known_does_not_wait_for_those_that_are_not() -> None:
    cloud, release = Google(), asyncio.Event()
    release.set()

    async def get(_: str) -> Answer:
        await release.wait()
        return Answer(cloud.key_set(), {"cache-control": "max-age=86400"})

    clock = ManualClock()
    keys = KeySource(get, "keys", clock)
    await keys.key("one")
    await clock.advance(fetch.KEYS_RETRY_PERIOD)
    release.clear()
    forged = asyncio.create_task(keys.key("forged"))
    await settle()
    known = asyncio.create_task(keys.key("one"))
    await settle()
    assert known.done()
    release.set()
    assert await known == cloud.rsa.public_key()
    with pytest.raises(FetchError):
        await forged


@pytest.mark.parametrize("garbage", [b"{}", b'{"keys": []}', b'{"keys": [{"kid": "one", "kty": "oct"}]}', b"<html>"])
async def test_an_answer_without_keys_displaces_none(garbage: bytes) -> None:
    cloud, clock = Google(), ManualClock()
    pages = Web({"keys": Answer(cloud.key_set(), {"cache-control": "max-age=60"})})
    keys = KeySource(pages, "keys", clock)
    await keys.key("one")
    pages.pages["keys"] = Answer(garbage)
    await clock.advance(60)
    assert await keys.key("one") == cloud.rsa.public_key()


async def test_old_keys_serve_while_there_are_no_new_ones() -> None:
    cloud, clock = Google(), ManualClock()
    pages = Web({"keys": Answer(cloud.key_set(), {"cache-control": "max-age=60"})})
    keys = KeySource(pages, "keys", clock)
    await keys.key("one")
    pages.pages["keys"] = FetchError("cannot get keys: no route")
    await clock.advance(3600)
    assert await keys.key("one") == cloud.rsa.public_key()
    with pytest.raises(FetchError):
        await keys.key("two")
    assert len(pages.asked) == 2
    pages.pages["keys"] = Answer(b"[]")
    await clock.advance(60)
    assert await keys.key("one") == cloud.rsa.public_key()


async def test_why_there_are_no_keys() -> None:
    keys = KeySource(Web({"keys": FetchError("cannot get keys: no route")}), "keys", ManualClock())
    with pytest.raises(FetchError, match="no route"):
        await keys.key("one")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 3600),
        ({"cache-control": "public, max-age=21600, must-revalidate"}, 21600),
        ({"cache-control": "max-age=21600", "age": "1600"}, 20000),
        ({"cache-control": "max-age=21600", "age": "x"}, 21600),
        ({"cache-control": "s-maxage=5"}, 3600),
        ({"cache-control": "max-age=0"}, 60),
        ({"cache-control": "no-store"}, 60),
        ({"cache-control": "max-age=9999999999"}, 86400),
        ({"cache-control": "max-age=99999999999999999999"}, 86400),
    ],
)
def test_how_long_an_answer_may_be_kept(headers: dict[str, str], seconds: float) -> None:
    assert keep_for(headers) == seconds


async def test_requests_over_http() -> None:
    async def redirect(_: web.Request) -> web.Response:
        raise web.HTTPFound("/page")

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=b"page", headers={"Cache-Control": "max-age=5"})

    async def endless(_: web.Request) -> web.Response:
        return web.Response(body=bytes(fetch.MAX_BODY + 1))

    app = web.Application()
    for path, handler in (("/page", page), ("/redirect", redirect), ("/endless", endless)):
        app.router.add_get(path, handler)
    get = HttpGet(public=False)
    async with TestServer(app) as server:
        answer = await get(str(server.make_url("/page")))
        assert (answer.body, answer.headers["cache-control"]) == (b"page", "max-age=5")
        for path, text in (("/redirect", "status 302"), ("/endless", "more than 1048576 bytes"), ("/x", "status 404")):
            with pytest.raises(FetchError, match=text):
                await get(str(server.make_url(path)))
        with pytest.raises(FetchError, match="has no name in it"):
            await HttpGet(public=True)(str(server.make_url("/page")))
    with pytest.raises(FetchError, match=r"cannot get http://127\.0\.0\.1:1/"):
        await get("http://127.0.0.1:1/")

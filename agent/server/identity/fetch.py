"""What verification needs from outside: Google's keys and Azure's certificate authorities. Each is kept, and asked for
seldom: nobody can make this server ask again and again by sending forged proofs."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509

from agent.clock import Clock, deadline
from agent.server.identity import jwt
from agent.server.identity.certificate import load

MAX_BODY: Final = 1024 * 1024
TIMEOUT: Final = 5.0
"""Seconds for one answer, and for all issuers of one signer."""

ISSUER_HOSTS: Final = frozenset({"www.microsoft.com", "cacerts.digicert.com"})
RETRY_PERIOD: Final = 60.0
"""Seconds from one try to fetch an issuer to the next one at the same URL."""
MAX_ISSUERS: Final = 64
"""URLs that are remembered; no other URL is tried while all of them were within the period."""

MIN_KEYS_AGE: Final = 60.0
DEFAULT_KEYS_AGE: Final = 3600.0
MAX_KEYS_AGE: Final = 86400.0
KEYS_RETRY_PERIOD: Final = 30.0
"""Seconds between two tries to get keys, whatever tokens name and whether or not the first try failed."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

log = structlog.get_logger("agent.server.identity")


class FetchError(Exception):
    """Nothing came back that can be used; the text says why."""


class Answer(NamedTuple):
    """`headers` have lower-case names."""

    body: bytes
    headers: Mapping[str, str] = {}


Get = Callable[[str], Awaitable[Answer]]
"""One GET request, without redirects. Raises `FetchError`."""


class HttpGet:
    """`Get` over aiohttp. `public`: only addresses of the public internet, and no proxy, as that would look them up."""

    def __init__(self, *, public: bool) -> None:
        self._public = public

    async def __call__(self, url: str) -> Answer:
        resolver = PublicResolver() if self._public else None
        if self._public and _is_address(urlsplit(url).hostname or ""):
            raise FetchError(f"{url} has no name in it")  # nothing would be looked up, nor checked
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(resolver=resolver),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT),
                    trust_env=not self._public,
                ) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise FetchError(f"{url} answers with status {response.status}")
                body = await response.content.read(MAX_BODY + 1)
                while len(body) <= MAX_BODY and (more := await response.content.read(MAX_BODY + 1 - len(body))):
                    body += more
                if len(body) > MAX_BODY:
                    raise FetchError(f"{url} answers with more than {MAX_BODY} bytes")
                return Answer(body, {name.lower(): value for name, value in response.headers.items()})
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise FetchError(f"cannot get {url}: {str(error) or type(error).__name__}") from error


class PublicResolver(AbstractResolver):
    """Finds public addresses only. aiohttp connects to what this returns: there is no second look-up in between."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        public = [(entry[0], str(entry[4][0])) for entry in found if is_public(str(entry[4][0]))]
        if not public:
            raise OSError(None, f"{host} has no public address")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in public
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed in _NAT64:
        parsed = ipaddress.IPv4Address(parsed.packed[-4:])
    inner = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None) or parsed
    return bool(inner.is_global and not inner.is_multicast)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_issuer_url(url: str) -> bool:
    """Whether a URL from a certificate may be asked (agent-api.md §5.4)."""
    if len(url) > 1024 or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and parts.hostname in ISSUER_HOSTS
        and port in (None, 80, 443)
        and parts.username is None
    )


class IssuerFetcher:
    """Certificates of issuers, by URL. What was fetched is kept for good: such a certificate does not change."""

    def __init__(self, get: Get, clock: Clock) -> None:
        self._get, self._clock = get, clock
        self._known: dict[str, tuple[float, x509.Certificate | None]] = {}
        self._lock = asyncio.Lock()

    async def fetch(self, urls: Iterable[str]) -> list[x509.Certificate]:
        """The issuers that can be had within `TIMEOUT`; what cannot is logged and left out."""
        found = []
        try:
            async with deadline(self._clock, TIMEOUT):
                for url in filter(is_issuer_url, urls):
                    certificate = await self._one(url)
                    if certificate is not None:
                        found.append(certificate)
        except TimeoutError:
            log.warning("the issuers of a signer did not arrive in time")
        return found

    async def _one(self, url: str) -> x509.Certificate | None:
        if (certificate := self._certificate(url)) is not None:
            return certificate  # without the lock: strangers may keep it busy with whatever they name
        async with self._lock:
            return self._certificate(url) or await self._fetch(url)

    def _certificate(self, url: str) -> x509.Certificate | None:
        return self._known[url][1] if url in self._known else None

    async def _fetch(self, url: str) -> x509.Certificate | None:
        now = self._clock.now()
        if url in self._known and now < self._known[url][0] + RETRY_PERIOD:
            return None
        if url not in self._known and not self._make_room(now):
            log.warning("no more issuers are looked up for now", url=url)
            return None
        self._known[url] = now, None
        try:
            certificate = await asyncio.to_thread(load, (await self._get(url)).body)
        except (FetchError, ValueError) as error:
            log.warning("cannot get the certificate of an issuer", url=url, error=str(error))
            return None
        self._known[url] = now, certificate
        return certificate

    def _make_room(self, now: float) -> bool:
        if len(self._known) < MAX_ISSUERS:
            return True
        oldest = min(self._known, key=lambda url: self._known[url][0])
        if now < self._known[oldest][0] + RETRY_PERIOD:
            return False
        del self._known[oldest]
        return True


class KeySource:
    """The keys behind one URL, as long as its answer may be kept; asked for anew when a token names an unknown one."""

    def __init__(self, get: Get, url: str, clock: Clock) -> None:
        self._get, self._url, self._clock = get, url, clock
        self._keys: dict[str, jwt.Key] = {}
        self._fresh_until = self._next_try = -1.0
        self._lock = asyncio.Lock()

    async def key(self, key_id: str) -> jwt.Key:
        """Raises `FetchError` when there is no such key, or no keys could be had. Old keys serve while no new ones can
        be had: Google withdraws keys days after it stops signing with them."""
        problem = ""
        if not self._has(key_id):  # else without the lock: strangers may keep it busy with ids that do not exist
            async with self._lock:
                if not self._has(key_id) and self._clock.now() >= self._next_try:
                    problem = await self._renew()
        key = self._keys.get(key_id)
        if key is None:
            raise FetchError(problem or "no key has the id that the token names")
        return key

    def _has(self, key_id: str) -> bool:
        return key_id in self._keys and self._clock.now() < self._fresh_until

    async def _renew(self) -> str:
        """What went wrong; empty when nothing did."""
        self._next_try = self._clock.now() + KEYS_RETRY_PERIOD
        try:
            answer = await self._get(self._url)
            self._keys = await asyncio.to_thread(jwt.parse_key_set, answer.body)
        except (FetchError, jwt.KeySetError) as error:
            log.warning("cannot get the keys of Google", url=self._url, error=str(error))
            return str(error)
        self._fresh_until = self._clock.now() + keep_for(answer.headers)
        return ""


def keep_for(headers: Mapping[str, str]) -> float:
    """Seconds for which an answer may be kept (RFC 9111 §4.2), within bounds."""
    control = headers.get("cache-control", "").lower()
    if "no-store" in control or "no-cache" in control:
        return MIN_KEYS_AGE
    age = re.search(r"(?:^|[\s,])max-age=\"?(\d{1,10})", control)
    if age is None:
        return DEFAULT_KEYS_AGE
    spent = headers.get("age", "")
    seconds = int(age[1]) - (int(spent) if re.fullmatch(r"\d{1,10}", spent, re.ASCII) else 0)
    return min(max(float(seconds), MIN_KEYS_AGE), MAX_KEYS_AGE)

"""Asking a cloud's metadata service: short deadlines, few retries, bounded answers, no proxy, no redirect.

Every cloud serves it on a link-local address without encryption. So nothing that this agent knows goes there: no
token, and none of the owner's extra headers (daemon.md §10, check 55). `MetadataService` has the rules and does no
I/O; `HttpAsker` is the thin driver over aiohttp.

The clouds' SDKs are not used: none of them sends these requests and no others within these bounds. botocore's fetcher
goes through the proxy of the environment, has no public way to another document than credentials, and falls back to
IMDSv1. google-auth asks for the service account first, and reads the address when it is imported. azure-core knows
nothing of attested documents and would only carry our request. All take bodies of any size, and wait in a thread that
cannot be cancelled. The tests compare our requests with those of these libraries.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from yarl import URL

from agent.backoff import Backoff
from agent.clock import Clock, deadline
from agent.identity.token import IdentityError
from agent.proxy import is_host
from agent.version import VERSION

if TYPE_CHECKING:
    import aiohttp

ATTEMPT_LIMIT = 2.0
"""Seconds for one request, connecting included."""
TOTAL_LIMIT = 6.0
"""Seconds for all that one exchange asks of the metadata service, pauses included. With what the control plane needs it
stays below the 10 s of agent-api.md §5.2."""
ATTEMPTS = 5
"""Requests at most for one thing (agent-api.md §5.5)."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
MAX_BODY = 64 * 1024
_PASSING = frozenset({408, 410, 425, 429})
"""Statuses beside 5xx that pass: a service that is asked too often, or (410, Azure) is being updated."""


class MetadataError(IdentityError):
    """The metadata service did not give what was asked. The text never has what it said, which may be a credential."""

    passing = False
    """Whether asking again soon may help."""


class UnansweredError(MetadataError):
    """No answer. `silent`: somebody took the connection, and then said nothing at all."""

    passing = True

    def __init__(self, request: str, what: str, *, silent: bool = False) -> None:
        super().__init__(f"{request}: {what}")
        self.silent = silent


class RefusedByMetadataError(MetadataError):
    """Another status than 200."""

    def __init__(self, request: str, answer: Answer) -> None:
        by = f" by the metadata service of {answer.cloud}" if answer.cloud else ""
        followed = ", a redirect, which is not followed" if 300 <= answer.status < 400 else ""
        super().__init__(f"{request}: answered{by} with status {answer.status}{followed}")
        self.status = answer.status
        self.passing = answer.status >= 500 or answer.status in _PASSING


class ProofError(MetadataError):
    """An answer that is not what the cloud documents: cut off, or somebody else's."""

    passing = True

    def __init__(self, thing: str, what: str, answer: Answer) -> None:
        kind = answer.content_type or "no content type"
        super().__init__(
            f"{thing} is unusable: {what} ({len(answer.body)} bytes, {kind}); something in between may answer in its "
            "stead, or cut answers off"
        )


def advice(error: MetadataError, title: str) -> str:
    """What to do about it, in whatever cloud."""
    match error:
        case UnansweredError():
            return f"this may be no machine in {title}, or a firewall may keep the agent from its metadata"
        case RefusedByMetadataError() if not error.passing:
            return "something else may answer there: the metadata service must be reached without any proxy"
        case _:
            return "the agent asks again with its next attempt"


class AskError(Exception):
    """A request that got no answer: the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a metadata service said."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Names in lower case."""

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def cloud(self) -> str:
        """Whose service answered, where the headers tell it; empty otherwise."""
        if self.headers.get("metadata-flavor") == "Google":
            return "Google Cloud"
        server = self.headers.get("server", "")
        if server.startswith("EC2"):
            return "AWS"
        return "Azure" if server.startswith(("IMDS", "Microsoft-IIS")) else ""


class Asker(Protocol):
    """Sends one request after another."""

    @property
    def connected(self) -> bool:
        """Whether the latest request got as far as a connection."""

    async def ask(self, method: str, url: URL, headers: Mapping[str, str]) -> Answer:
        """Raises `AskError`. The caller bounds the time."""


class MetadataService:
    """One metadata service during one exchange: all that is asked of it shares `TOTAL_LIMIT` seconds."""

    def __init__(
        self,
        name: str,
        base: URL,
        asker: Asker,
        clock: Clock,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._name = name
        self._base = str(base).rstrip("/")
        self._asker = asker
        self._clock = clock
        self._uniform = uniform
        self._end = clock.now() + TOTAL_LIMIT

    async def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        check: Callable[[Answer], None] = lambda answer: None,
    ) -> Answer:
        """The answer with status 200 to `method target`, a path with its query that is sent as it stands.

        `check` raises `ProofError` for an answer that is no good, and is asked again like a service that fails.
        Raises `UnansweredError`, `RefusedByMetadataError` and `ProofError`, when retries did not help.
        """
        url = URL(self._base + target, encoded=True)
        pauses = Backoff(first=FIRST_PAUSE, cap=LONGEST_PAUSE, factor=2, uniform=self._uniform)
        while True:
            try:
                answer = await self._attempt(method, url, headers)
                check(answer)
            except MetadataError as error:
                pause = pauses.next()
                if not error.passing or pauses.attempts >= ATTEMPTS or self._clock.now() + pause >= self._end:
                    raise
            else:
                return answer
            await self._clock.sleep(pause)

    async def _attempt(self, method: str, url: URL, headers: Mapping[str, str]) -> Answer:
        request = f"{self._name}: {method} {url.with_query(None)}"
        try:
            async with deadline(self._clock, min(ATTEMPT_LIMIT, max(self._end - self._clock.now(), 0))):
                answer = await self._asker.ask(method, url, headers)
        except TimeoutError:
            silent = self._asker.connected
            what = "the connection was taken, and no answer came in time" if silent else "nobody answers"
            raise UnansweredError(request, what, silent=silent) from None
        except AskError as error:
            raise UnansweredError(request, str(error)) from error
        if answer.status != 200:
            raise RefusedByMetadataError(request, answer)
        return answer


class HttpAsker:
    """Asks over aiohttp. The session is this one's alone: no proxy, no cookies, no header that was not given."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.connected = False

    async def ask(self, method: str, url: URL, headers: Mapping[str, str]) -> Answer:
        import aiohttp

        self.connected = False
        try:
            async with self._session.request(
                method, url, headers=headers, allow_redirects=False, trace_request_ctx=self
            ) as response:
                body = bytearray()
                while chunk := await response.content.read(MAX_BODY + 1 - len(body)):
                    body += chunk
                    if len(body) > MAX_BODY:
                        raise AskError(f"the answer has more than {MAX_BODY} bytes")
        except aiohttp.ClientResponseError:
            raise AskError("the answer is not proper HTTP") from None  # the error quotes it
        except aiohttp.ClientPayloadError:
            raise AskError("the answer broke off, or is not proper HTTP") from None
        except (aiohttp.ClientError, OSError) as error:
            raise AskError(str(error) or type(error).__name__) from error
        return Answer(response.status, bytes(body), {name.lower(): value for name, value in response.headers.items()})


@asynccontextmanager
async def http_asker() -> AsyncIterator[HttpAsker]:
    """An asker with a session for one exchange: between two of them there may be hours."""
    import aiohttp

    async def connected(session: object, context: Any, details: object) -> None:
        context.trace_request_ctx.connected = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=4),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"workspace-agent/{VERSION}", "Accept-Encoding": "identity"},
        skip_auto_headers=("Content-Type",),
        timeout=aiohttp.ClientTimeout(total=None),
        trace_configs=[trace],
        trust_env=False,
        auto_decompress=False,
    ) as session:
        yield HttpAsker(session)


def endpoint(variable: str, text: str) -> URL:
    """The address of a metadata service that a variable names. Raises `IdentityError`."""
    try:
        url = URL(text)
        usable = url.scheme == "http" and is_host(url.host) and not url.user and not url.password
    except (ValueError, IndexError):  # yarl has both for what it cannot read
        usable = False
    if not usable:
        raise IdentityError(
            f"{variable} is not the address of a metadata service; write it like http://169.254.169.254"
        )
    return url.with_query(None).with_fragment(None)

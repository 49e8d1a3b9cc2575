"""The HTTP session that all traffic to the control plane goes through.

A middleware adds the token and the owner's extra headers. It runs again for every hop of a redirect and refuses hops
to another origin: nothing secret may go there, and without the token nothing could be had there. The same middleware
turns every unexpected status into `RefusedError` while the body can still be read, WebSocket handshakes included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from yarl import URL

from agent.clock import Clock
from agent.control.errors import RedirectError, RefusedError, UnreachableError, Validation
from agent.proxy import ProxyError, proxy_for

TOKEN_HEADER = "Coder-Session-Token"  # noqa: S105 - the name of a header
MAX_ERROR_BODY = 64 * 1024


class ControlHttp:
    """An aiohttp session bound to one control plane.

    `headers` are the pairs of `--agent-header` and the header command, added (not replaced) to every request. `token`
    is what the next request presents; empty means none.
    """

    def __init__(self, base: URL, headers: Sequence[tuple[str, str]], clock: Clock) -> None:
        self.base = base.origin()
        self.token = ""
        self._headers = tuple(headers)
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    def url(self, path: str, **query: str) -> URL:
        """The absolute URL of an API path; a path in the configured URL is discarded (agent-api.md §1.1)."""
        return self.base.with_path(path).with_query(query)

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session, made at first use because it belongs to the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=16, limit_per_host=8, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
                middlewares=(self._authenticate,),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
            )
        return self._session

    def proxy(self) -> URL | None:
        """The proxy of the environment for requests to this control plane, to be given with each request.

        Raises `UnreachableError` when a proxy variable is unusable.
        """
        try:
            return proxy_for(self.base, os.environ)
        except ProxyError as error:
            raise UnreachableError(f"{self.base}: {error}") from error

    async def aclose(self) -> None:
        """Close the session and its pooled connections; calling it again does nothing."""
        if self._session is not None:
            await self._session.close()

    async def _authenticate(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.url.origin() != self.base:
            raise RedirectError(
                f"{self.base} redirects to {request.url.origin()}, where the token must not go; "
                "set CODER_AGENT_URL to the address that the server really has"
            )
        if self.token:
            request.headers[TOKEN_HEADER] = self.token
        for name, value in self._headers:
            request.headers.add(name, value)
        response = await handler(request)
        if response.status >= 400:
            raise await self._refusal(response)
        return response

    async def _refusal(self, response: aiohttp.ClientResponse) -> RefusedError:
        request = f"{response.method} {response.url.with_query(None).with_user(None)}"
        try:
            body = await read_bounded(response, MAX_ERROR_BODY)
        except (aiohttp.ClientError, TimeoutError):
            body = b""  # the status alone says enough; a body that breaks off adds nothing
        finally:
            response.close()
        return refusal(request, response.status, response.content_type, body, self._retry_after(response))

    def _retry_after(self, response: aiohttp.ClientResponse) -> float | None:
        text = response.headers.get("Retry-After", "").strip()
        if not text:
            return None
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            when = parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):
            return None
        return max(when - self._clock.wall() / 1e9, 0.0)


def refusal(request: str, status: int, content_type: str, body: bytes, retry_after: float | None) -> RefusedError:
    """The error for an unexpected status, read out of its body as agent-api.md §1.5 says."""
    if content_type != "application/json":
        text = body[:2048].decode("utf-8", "replace").strip()
        message = f'unexpected non-JSON response "{content_type}"'
        return RefusedError(request, status, message, text, retry_after=retry_after)
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    fields: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    message = str(fields.get("message") or f"unexpected status code {status}, response has no message")
    listed = fields.get("validations")
    validations = tuple(
        Validation(str(entry.get("field", "")), str(entry.get("detail", "")))
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict)
    )
    return RefusedError(request, status, message, str(fields.get("detail") or ""), validations, retry_after)


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, cut to `limit` bytes."""
    body = bytearray()
    while len(body) < limit and (chunk := await response.content.read(limit - len(body))):
        body += chunk
    return bytes(body)


@contextmanager
def reaching(url: URL) -> Iterator[None]:
    """Within it, whatever aiohttp raises while talking to `url` becomes `UnreachableError`."""
    where = url.with_query(None).with_user(None)
    try:
        yield
    except aiohttp.ClientHttpProxyError as error:
        # No cause is kept: its text has the proxy's URL, password included.
        raise UnreachableError(f"{where}: the proxy refused: {error.status} {error.message}") from None
    except aiohttp.TooManyRedirects as error:  # its own text is empty
        raise UnreachableError(f"{where}: redirects that lead nowhere; check CODER_AGENT_URL") from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise UnreachableError(f"{where}: {error}; SSL_CERT_FILE names the authorities to trust") from error
    except TimeoutError as error:
        raise UnreachableError(f"{where}: no answer in time") from error
    except aiohttp.WSServerHandshakeError as error:
        raise UnreachableError(f"{where}: {error}") from error
    except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError):
        # No cause is kept, and nothing of its text: it quotes what came, which may have a token in it.
        raise UnreachableError(f"{where}: the answer is no HTTP; what stands in between?") from None
    except (aiohttp.ClientError, OSError) as error:
        raise UnreachableError(f"{where}: {str(error) or type(error).__name__}") from error

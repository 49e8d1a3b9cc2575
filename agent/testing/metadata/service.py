"""What the fake metadata services have in common: who the instance is, what was asked, what goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

CONTROL = "/fake"
"""`PATCH` here changes a fake that runs as a process of its own; see `FakeMetadata.change`."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Who the machine is. A cloud takes from it what its documents have."""

    id: str
    owner: str = "123456789012"
    """Account, subscription or project."""
    region: str = "us-east-1"


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, all of it until it is changed."""

    delay: float = 0.0
    """Seconds before each answer."""
    status: int = 0
    """Each answer has this status, such as 503, and no content."""
    hangs_up: bool = False
    """The connection is closed without an answer."""
    web_page: bool = False
    """A login page with status 200, as a network with a captive portal gives."""
    redirect: str = ""
    """Each answer leads there."""
    truncated: bool = False
    """Only the first half of each body comes, with a length that says so."""
    huge: bool = False
    """Each body is 10 MB long."""
    expired: bool = False
    """Documents that have a life ended yesterday."""
    hop_limit: bool = False
    """AWS: the answer with the token never arrives, as behind one network hop too many."""
    v1_only: bool = False
    """AWS: nobody answers the request for a token, and none is wanted."""
    no_intermediate: bool = False
    """Azure: the message has the signer's certificate alone."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked: the target as it came, names of headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)


class FakeMetadata:
    """One cloud's service. A test changes `instance` and `faults` at any time, and reads `requests`."""

    server = ""
    """The header `Server` of each answer."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.faults = Faults()
        self.requests: list[Request] = []

    def answer(self, request: web.Request) -> web.Response:
        """What the cloud answers when nothing goes wrong."""
        raise NotImplementedError

    def rotate(self) -> None:
        """New keys, as clouds get them now and then."""
        raise NotImplementedError

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Take over `faults` (those named; the others end), `instance_id`, and `rotate`. Raises `TypeError`."""
        if "faults" in wanted:
            self.faults = Faults(**wanted["faults"])
        if "instance_id" in wanted:
            self.instance = dataclasses.replace(self.instance, id=wanted["instance_id"])
        if wanted.get("rotate"):
            self.rotate()

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve it there; gives the URL."""
        app = web.Application()
        app.router.add_patch(CONTROL, self._control)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            bound = runner.addresses[0]
            yield f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
        finally:
            await runner.cleanup()

    async def _control(self, request: web.Request) -> web.Response:
        try:
            self.change(await request.json())
        except (ValueError, TypeError) as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.json_response({"faults": dataclasses.asdict(self.faults), "instance_id": self.instance.id})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Request(request.method, request.path_qs, headers))
        faults = self.faults
        if faults.delay:
            await asyncio.sleep(faults.delay)
        if faults.hangs_up:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if faults.status:
            return web.Response(status=faults.status)
        if faults.redirect:
            return web.Response(status=302, headers={"Location": faults.redirect})
        if faults.web_page:
            return web.Response(text="<html><title>Log in</title></html>", content_type="text/html")
        if self._never_answers(request):
            await asyncio.Event().wait()
        response = self.answer(request)
        response.headers["Server"] = self.server
        if faults.huge:
            response.body = b"x" * 10_000_000
        if faults.truncated and isinstance(response.body, bytes):
            response.body = response.body[: len(response.body) // 2]
        return response

    def _never_answers(self, request: web.Request) -> bool:
        return False

"""What the agent really sends to a metadata service: compared with the clouds' own libraries, and without them."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from agent.clock import SystemClock
from agent.identity import CLOUDS, Auto, Cloud, IdentityError, InstanceIdentity
from agent.identity.metadata import AskError, http_asker
from agent.testing.metadata import Authority, FakeMetadata, Faults, Instance, Request
from agent.testing.metadata.__main__ import make
from agent.testing.processes import Component

AWS, AZURE, GOOGLE = CLOUDS
Running = tuple[Cloud, FakeMetadata, str]
SDKS = ("botocore", "boto3", "azure", "google.auth", "requests", "urllib3")


def environment(url: str) -> dict[str, str]:
    """Lets every cloud's address be `url`."""
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": url,
        "GCE_METADATA_HOST": url.removeprefix("http://"),
    }


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(params=["aws", "azure", "google"])
async def running(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[Running]:
    """A cloud, its fake, and where that is."""
    cloud = next(cloud for cloud in CLOUDS if cloud.method.startswith(request.param))
    fake = make(request.param, authority, Instance("i-1"))
    async with fake.listening() as url:
        yield cloud, fake, url


async def no_exchange(method: str, proof: Mapping[str, str]) -> str:
    return "token"


def identity(cloud: Cloud, url: str) -> InstanceIdentity:
    return InstanceIdentity(cloud, no_exchange, "", environment(url), SystemClock())


def with_botocore(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = import_module("botocore.utils")
    fetcher = utils.IMDSFetcher(base_url=f"{url}/")
    token = fetcher._fetch_metadata_token()
    for name in ("signature", "document"):
        assert fetcher._get_request(f"latest/dynamic/instance-identity/{name}", None, token).status_code == 200


def with_azure_core(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = import_module("azure.core.pipeline")
    transport = import_module("azure.core.pipeline.transport")
    request = transport.HttpRequest(
        "GET", f"{url}/metadata/attested/document?api-version=2020-09-01", headers={"Metadata": "true"}
    )
    with pipeline.Pipeline(transport.RequestsTransport(use_env_settings=False)) as opened:
        assert opened.run(request).http_response.status_code == 200


def with_google_auth(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = import_module("google.auth.compute_engine")
    transport = import_module("google.auth.transport.requests")
    monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", url.removeprefix("http://"))
    session = transport.requests.Session()
    with session:
        request = transport.Request(session)
        credentials = engine.IDTokenCredentials(
            request, "coder", use_metadata_identity_endpoint=True, bind_id_token=False
        )
        credentials.refresh(request)
    assert credentials.token


SDK: dict[str, Callable[[str, pytest.MonkeyPatch], None]] = {
    AWS.method: with_botocore,
    AZURE.method: with_azure_core,
    GOOGLE.method: with_google_auth,
}
MEANINGFUL = {"x-aws-ec2-metadata-token-ttl-seconds", "metadata", "metadata-flavor"}


def essence(request: Request) -> tuple[str, str, dict[str, str]]:
    """What the metadata service goes by; a token of it is another one each time."""
    headers = {name: value for name, value in request.headers.items() if name in MEANINGFUL}
    return request.method, request.target, {**headers, "token": str("x-aws-ec2-metadata-token" in request.headers)}


@pytest.mark.spec("agent-api", 12, 13, 14)
async def test_the_clouds_own_library_asks_the_same(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, fake, url = running
    await identity(cloud, url).obtain()
    ours = [essence(request) for request in fake.requests]
    fake.requests.clear()
    await asyncio.to_thread(SDK[cloud.method], url, monkeypatch)
    # google-auth asks who the service account is before that.
    assert [essence(request) for request in fake.requests][-len(ours) :] == ours


@pytest.mark.spec("daemon", 55)
async def test_nothing_else_is_told(running: Running) -> None:
    cloud, fake, url = running
    await identity(cloud, url).obtain()
    proper = {"host", "accept", "accept-encoding", "user-agent", "content-length", *MEANINGFUL}
    for request in fake.requests:
        assert not request.headers.keys() - proper - {"x-aws-ec2-metadata-token"}


@pytest.mark.spec("daemon", 55)
async def test_neither_proxy_nor_redirect(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, fake, url = running
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await identity(cloud, url).obtain() == "token"
    fake.requests.clear()
    fake.faults = Faults(redirect=f"{url}/elsewhere")
    with pytest.raises(IdentityError, match="a redirect, which is not followed"):
        await identity(cloud, url).obtain()
    assert all("elsewhere" not in request.target for request in fake.requests)


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        (Faults(huge=True), "more than 65536 bytes"),
        (Faults(web_page=True), "text/html"),
        (Faults(hangs_up=True), "disconnected"),
        (Faults(status=500), "status 500"),
    ],
)
async def test_faults(running: Running, faults: Faults, text: str) -> None:
    cloud, fake, url = running
    fake.faults = faults
    with pytest.raises(IdentityError, match=text):
        await identity(cloud, url).obtain()
    fake.change({"faults": {}})
    assert await identity(cloud, url).obtain() == "token"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello-SECRET\r\n",
        b"SECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n",
        b"HTTP/1.1 200 OK\r\nX: SECRET" + b"x" * 9000 + b"\r\n\r\n",
    ],
)
async def test_answers_that_are_not_http_are_not_quoted(answer: bytes) -> None:
    """They may have a credential in them, and the error is logged."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server, http_asker() as asker:
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        with pytest.raises(AskError, match="not proper HTTP") as caught:
            await asker.ask("GET", url, {})
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


async def test_auto_finds_each(running: Running, tmp_path: Path) -> None:
    cloud, _, url = running
    found: list[Cloud] = []

    def source(cloud: Cloud) -> InstanceIdentity:
        found.append(cloud)
        return identity(cloud, url)

    auto = Auto(source, None, environment(url), SystemClock(), sys_directory=str(tmp_path))
    assert await auto.obtain() == "token"
    assert found == [cloud]


class Fake(Component):
    """A fake as a process of its own."""

    program = (sys.executable, "-m", "agent.testing.metadata")


async def test_a_fake_as_a_process(tmp_path: Path) -> None:
    fake = Fake("fake", ["google", "--instance-id=i-1", f"--directory={tmp_path}"], directory=tmp_path)
    await fake.start()
    try:
        url = (
            await fake.wait_for_output(r"metadata of i-1 on (http://\S+)\n.*--instance-identity .*identity.json", 20)
        )[1]
        assert await identity(GOOGLE, url).obtain() == "token"
        async with aiohttp.ClientSession() as session:
            async with session.patch(f"{url}/fake", json={"faults": {"status": 404}, "rotate": True}) as answer:
                assert (await answer.json())["faults"]["status"] == 404
            async with session.patch(f"{url}/fake", json={"faults": {"magic": True}}) as answer:
                assert answer.status == 400
        with pytest.raises(IdentityError, match="no service account"):
            await identity(GOOGLE, url).obtain()
        assert await fake.stop(10) == 0
    finally:
        await fake.kill()


async def test_an_agent_without_libraries_of_clouds(tmp_path: Path, authority: Authority) -> None:
    names = ("aws", "azure", "google")
    fakes = {f"{name}-instance-identity": make(name, authority, Instance("i-1")) for name in names}
    async with AsyncExitStack() as stack:
        agents = []
        for method, fake in fakes.items():
            url = await stack.enter_async_context(fake.listening())
            variables = {
                **environment(url),
                "PATH": "/usr/bin:/bin",
                "PYTHONPROFILEIMPORTTIME": "1",  # the interpreter tells each import on standard error
                "CODER_AGENT_URL": "http://127.0.0.1:9",
                "CODER_AGENT_AUTH": method,
                "CODER_AGENT_LOG_DIR": str(tmp_path / method),
                "CODER_AGENT_STATE_DIR": str(tmp_path / "state"),
            }
            agent = Component(method, ["agent"], directory=tmp_path, environment=variables)
            await agent.start()
            stack.push_async_callback(agent.kill)
            agents.append(agent)
        for agent in agents:
            await agent.wait_for_output("cannot connect: http://127.0.0.1:9/.*instance-identity", 20)
            printed = await asyncio.to_thread(agent.printed)
            assert "agent.identity.metadata" in printed
            assert not [line for line in printed.splitlines() if _imports_one(line)]


def _imports_one(line: str) -> bool:
    name = line.rpartition("|")[2].strip()
    return line.startswith("import time:") and any(name == sdk or name.startswith(f"{sdk}.") for sdk in SDKS)

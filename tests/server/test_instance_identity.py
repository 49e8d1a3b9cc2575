"""Exchanging the proof of a cloud instance for a token, through the whole server."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.api.proto import agent_pb2 as pb
from agent.server.auth import hash_agent_token
from agent.server.store import agents
from tests.server.deployment import Deployment, NewAgent, deployment
from tests.server.identity.clouds import Aws, Azure, Google, issue, rsa_key

AWS, AZURE, GOOGLE = (f"/api/v2/workspaceagents/{cloud}-instance-identity" for cloud in ("aws", "azure", "google"))


class World:
    """A server that trusts three clouds of ours."""

    server: Deployment

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.aws, self.google = Aws(), Google()
        self.azure = Azure(issue("root", rsa_key(2), now=now))
        self.azure.issuer = issue("issuer", rsa_key(3), self.azure.root, now=now)
        self.azure.signer = issue("metadata.azure.com", rsa_key(4), self.azure.issuer, authority=None, now=now)

    async def post(self, path: str, body: dict[str, Any], expect: int = 200) -> Any:
        return await self.server.call("POST", path, token="", json=body, expect=expect)

    def aws_body(self, instance: str, **more: Any) -> dict[str, Any]:
        document = self.aws.document(instance)
        return {"document": document, "signature": self.aws.sign(document), **more}

    def azure_body(self, vm: str, **more: Any) -> dict[str, Any]:
        signature = self.azure.attest(self.azure.document(vm), chain=(self.azure.issuer,))
        return {"encoding": "pkcs7", "signature": signature, **more}

    def google_body(self, instance: str, **changes: Any) -> dict[str, Any]:
        claims = self.google.claims(instance, self.now.timestamp(), **changes)
        return {"json_web_token": self.google.token(claims)}

    async def exchange(self, instance: str, expect: int = 200, **more: Any) -> Any:
        return await self.post(AWS, self.aws_body(instance, **more), expect)


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with trusting(database_url, tmp_path) as made:
        yield made


@asynccontextmanager
async def trusting(database_url: str, folder: Path, **bounds: dict[str, Any]) -> AsyncIterator[World]:
    now = datetime.now(UTC)
    google = Google()

    def answer(body: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(_: web.Request) -> web.Response:
            return web.Response(body=body, headers={"Cache-Control": "public, max-age=100"})

        return handler

    keys = web.Application()
    keys.router.add_get("/certs", answer(google.key_set()))
    keys.router.add_get("/iap", answer(google.proxy_key_set()))
    async with TestServer(keys) as running:
        clouds = World(now)
        (folder / "aws.pem").write_bytes(clouds.aws.region.pem)
        (folder / "roots.pem").write_bytes(clouds.azure.root.pem)
        config = {
            "aws": {"certificates": "aws.pem", **bounds.get("aws", {})},
            "azure": {"roots": "roots.pem", "fetch_issuers": False, **bounds.get("azure", {})},
            "google": {
                "keys_url": str(running.make_url("/certs")),
                "iap_keys_url": str(running.make_url("/iap")),
                **bounds.get("google", {}),
            },
        }
        (folder / "identity.json").write_text(json.dumps(config))
        async with deployment(database_url, folder, identity=folder / "identity.json") as server:
            clouds.server = server
            yield clouds


@pytest.mark.spec("agent-api", 12)
async def test_a_signed_aws_document_gets_the_agents_token(world: World) -> None:
    agent = await world.server.new_agent("dev", instance_id="i-1")
    answer = await world.exchange("i-1")
    assert list(answer) == ["session_token"]
    token = answer["session_token"]
    assert await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=token)
    assert await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=agent.token)
    altered = world.aws_body("i-1")
    altered["document"] = altered["document"].replace("i-1", "i-2")
    answer = await world.post(AWS, altered, 401)
    assert answer == {"message": "Invalid AWS identity.", "detail": "crypto/rsa: verification error"}


@pytest.mark.spec("agent-api", 13)
async def test_a_signed_azure_document_gets_the_agents_token(world: World) -> None:
    await world.server.new_agent("dev", instance_id="vm-1")
    token = (await world.post(AZURE, world.azure_body("vm-1")))["session_token"]
    assert await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=token)
    for name in ("evil.com", "xmetadata.azure.com"):
        signer = issue(name, rsa_key(4), world.azure.issuer, authority=None, now=world.now)
        forged = world.azure.attest(world.azure.document("vm-1"), signer=signer, chain=(world.azure.issuer,))
        answer = await world.post(AZURE, {"encoding": "pkcs7", "signature": forged}, 401)
        assert answer["message"] == "Invalid Azure identity."
        assert answer["detail"].startswith("Signature verification failed. The signer's certificate is not one of")
    for attributes in (True, False):
        message = world.azure.message(world.azure.document("vm-2"), chain=(world.azure.issuer,), attributes=attributes)
        altered = base64.b64encode(message.replace(b"vm-2", b"vm-1")).decode()
        answer = await world.post(AZURE, {"encoding": "pkcs7", "signature": altered}, 401)
        assert answer["detail"].startswith("Signature verification failed.")


@pytest.mark.spec("agent-api", 14)
async def test_a_google_token_gets_the_agents_token(world: World) -> None:
    await world.server.new_agent("dev", instance_id="123")
    token = (await world.post(GOOGLE, world.google_body("123")))["session_token"]
    assert await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=token)
    answer = await world.post(GOOGLE, world.google_body("123", exp=1), 401)
    assert answer["message"] == "Invalid GCP identity."
    assert answer["detail"].startswith("idtoken: token expired: now=")


async def test_claims_of_the_wrong_kind(world: World) -> None:
    wrong: list[Any] = [{"compute_engine": {"instance_id": 1}}, {"compute_engine": []}, "x"]
    for google in wrong:
        answer = await world.post(GOOGLE, world.google_body("", google=google), 400)
        assert answer["message"] == "Error decoding JWT claims."
    await world.server.new_agent("unbound")
    answer = await world.post(GOOGLE, world.google_body("", google={}), 404)
    assert answer["message"] == 'Instance with id "" not found.', "nobody is bound to no instance"


@pytest.mark.spec("agent-api", 15)
async def test_which_agent_an_instance_is(world: World) -> None:
    missing = await world.exchange("i-1", 404)
    assert missing["message"] == 'Instance with id "i-1" not found.'
    await world.server.new_agent("one", instance_id="i-1", agent_name="second")
    await world.server.new_agent("two", instance_id="i-1", agent_name="first")
    for name in ("", "  "):
        several = await world.exchange("i-1", 409, agent_name=name)
        assert several["message"] == (
            'Multiple agents found with instance ID "i-1". Set CODER_AGENT_NAME to one of: first, second'
        )
    token = (await world.exchange("i-1", agent_name=" first "))["session_token"]
    assert (await me(world, token)).workspace_name == "two"
    unknown = await world.exchange("i-1", 404, agent_name="third")
    assert unknown["message"] == 'No agent found with instance ID "i-1" and name "third".'
    for name in ("one", "two"):
        await world.server.call("DELETE", f"/api/v2/agents/{name}", expect=204)
    await world.exchange("i-1", 404)


@pytest.mark.spec("agent-api", 15)
async def test_agents_of_earlier_builds_do_not_count(world: World) -> None:
    await world.server.new_agent("dev", instance_id="i-1")
    old = (await world.exchange("i-1"))["session_token"]
    builds = "/api/v2/agents/dev/builds"
    await world.server.call("POST", builds, json={"transition": "start"}, expect=201)
    new = (await world.exchange("i-1"))["session_token"]
    assert new != old
    await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=old, expect=401)
    await world.server.call("POST", builds, json={"transition": "stop"}, expect=201)
    assert (await world.exchange("i-1"))["session_token"] == new, "stop scripts may still report"
    await world.server.call("PATCH", builds + "/3", json={"status": "succeeded"})
    answer = await world.exchange("i-1", 400)
    assert answer["message"] == 'Resource found for id "i-1", but isn\'t registered on the latest history.'


@pytest.mark.spec("agent-api", 16)
async def test_a_new_build_of_the_same_instance_gives_another_token(world: World) -> None:
    """The server's part of it: each exchange answers for the build that counts then."""
    await world.server.new_agent("dev", instance_id="i-1")
    first = (await world.exchange("i-1"))["session_token"]
    assert (await world.exchange("i-1"))["session_token"] == first, "running programs have it in their environment"
    await world.server.call("POST", "/api/v2/agents/dev/builds", json={"transition": "start"}, expect=201)
    second = (await world.exchange("i-1"))["session_token"]
    assert (await me(world, second)).workspace_name == "dev"
    await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=first, expect=401)


async def test_a_new_token_of_the_agent_changes_that_of_its_instance(world: World) -> None:
    await world.server.new_agent("dev", instance_id="i-1")
    first = (await world.exchange("i-1"))["session_token"]
    await world.server.call("POST", "/api/v2/agents/dev/token", expect=201)
    await world.server.call("GET", "/api/v2/workspaceagents/me/gitsshkey", token=first, expect=401)
    second = (await world.exchange("i-1"))["session_token"]
    assert (await me(world, second)).workspace_name == "dev"


async def me(world: World, token: str) -> pb.Manifest:
    """The manifest of the agent with this token."""
    async with world.server.rpc(NewAgent(uuid4(), token)) as client:
        return pb.Manifest.FromString(await client.unary("/coder.agent.v2.Agent/GetManifest", b"", 10))


async def test_binding_to_an_instance(world: World) -> None:
    answer = await world.server.call(
        "POST", "/api/v2/agents?instance_id=i-9", json={"name": "dev", "instance_id": "i-1"}, expect=201
    )
    assert answer["instance_id"] == "i-9"
    agent = f"/api/v2/workspaceagents/{answer['id']}"
    shown = await world.server.call("GET", agent)
    assert shown["instance_id"] == "i-9"
    assert "instance_proof" not in shown
    await world.exchange("i-9")
    proof = (await world.server.call("GET", agent))["instance_proof"]
    assert proof["cloud"] == "aws"
    assert datetime.fromisoformat(proof["verified_at"]) >= world.now
    mistaken = await world.server.call("POST", "/api/v2/agents?instance_id=a%20b", json={"name": "x"}, expect=400)
    assert mistaken["validations"][0]["field"] == "instance_id"


async def test_agents_of_one_instance_need_different_names(world: World) -> None:
    await world.server.new_agent("one", instance_id="i-1")
    taken = await world.server.call("POST", "/api/v2/agents", json={"name": "two", "instance_id": "i-1"}, expect=409)
    assert taken["message"] == 'The agent "main" of workspace "one" is bound to the instance "i-1" already.'
    again = {"transition": "start"}
    await world.server.call("POST", "/api/v2/agents/one/builds", json=again, expect=201)
    await world.server.new_agent("two", instance_id="i-1", agent_name="other")
    await world.server.call("DELETE", "/api/v2/agents/one", expect=204)
    await world.server.new_agent("three", instance_id="i-1")


async def test_members_do_not_decide_what_runs_on_an_instance(world: World) -> None:
    member = await world.server.new_member("bob")
    create = {"name": "dev", "instance_id": "i-1"}
    await world.server.call("POST", "/api/v2/agents", token=member, json=create, expect=403)
    await world.server.call("POST", "/api/v2/agents", json={**create, "owner": "bob"}, expect=201)
    builds = "/api/v2/agents/dev/builds"
    await world.server.call("POST", builds, token=member, json={"transition": "start"}, expect=201)
    other = {"transition": "start", "definition": json.dumps({"name": "dev", "instance_id": "i-2"})}
    await world.server.call("POST", builds, token=member, json=other, expect=403)
    unbound = {"transition": "start", "definition": json.dumps({"name": "dev"})}
    await world.server.call("POST", builds, token=member, json=unbound, expect=201)
    await world.exchange("i-1", 400)


async def test_connections_with_the_token_of_an_instance_stay(world: World) -> None:
    """The monitor ends connections whose token is refused now."""
    agent = await world.server.new_agent("dev", instance_id="i-1")
    tokens = [UUID(agent.token), UUID((await world.exchange("i-1"))["session_token"]), UUID(int=1)]
    hashes = [hash_agent_token(token) for token in tokens]
    async with world.server.database.reading() as session:
        assert await agents.current_tokens(session, hashes) == set(hashes[:2])
        assert await agents.current_tokens(session, hashes[1:]) == {hashes[1]}


@pytest.mark.parametrize(
    ("bounds", "what"),
    [
        ({"aws": {"accounts": ["1"]}}, "account"),
        ({"aws": {"regions": ["eu-west-1"]}}, "region"),
        ({"azure": {"subscriptions": ["other"]}}, "subscription"),
        ({"google": {"projects": ["other"]}}, "project"),
        ({"google": {"audiences": ["other"]}}, "audience"),
    ],
)
async def test_instances_of_others(tmp_path: Path, bounds: dict[str, Any], what: str) -> None:
    async with trusting(f"sqlite:///{tmp_path}/test.db", tmp_path, **bounds) as world:
        await world.server.new_agent("dev", instance_id="x")
        path, body = {
            "aws": (AWS, world.aws_body("x")),
            "azure": (AZURE, world.azure_body("x")),
            "google": (GOOGLE, world.google_body("x")),
        }[next(iter(bounds))]
        answer = await world.post(path, body, 401)
        if what != "audience":
            assert answer["detail"].startswith(f"This server does not accept instances of {what} ")


@pytest.mark.parametrize("path", [AWS, AZURE, GOOGLE])
async def test_bodies_that_are_no_proof(world: World, path: str) -> None:
    missing = await world.post(path, {}, 400)
    assert missing["message"] == "Validation failed."
    assert len(missing["validations"]) == (1 if path == GOOGLE else 2)
    large = await world.post(path, {"signature": "a" * 10_000_000}, 413)
    assert large["message"] == "Request body too large."


async def test_an_instance_id_that_no_database_takes(world: World) -> None:
    for instance in ("i\ud83d\x00", "x" * 5000, "a\u202eb"):
        claims = {"compute_engine": {"instance_id": instance}}
        answer = await world.post(
            GOOGLE, world.google_body("", google=claims), 404 if "\ud83d" not in instance else 401
        )
        assert len(answer["message"]) < 200


async def test_every_decision_is_in_the_log_without_the_proof(world: World) -> None:
    await world.server.new_agent("dev", instance_id="i-1")
    good, bad = world.aws_body("i-1"), world.aws_body("i-1", signature="AAAA")
    with structlog.testing.capture_logs() as logs:
        answer = await world.post(AWS, good)
        await world.post(AWS, bad, 401)
        await world.exchange("i-7", 404)
    events = [entry for entry in logs if entry["event"].startswith("an instance was")]
    assert [entry["event"] for entry in events] == ["an instance was admitted", *["an instance was refused"] * 2]
    assert events[0]["instance_id"] == "i-1"
    assert events[1]["reason"] == "wrong signature"
    assert events[2]["reason"] == 'Instance with id "i-7" not found.'
    written = repr(events)
    for secret in (answer["session_token"], good["signature"], good["document"], "pendingTime"):
        assert secret not in written

"""Each cloud's requests, byte for byte, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.identity import CLOUDS, Cloud, IdentityError, aws, azure, google
from agent.identity.metadata import Answer, AskError, ProofError
from agent.testing import ManualClock, settle
from tests.identity.scripted import Reply, ScriptedAsker, ok

AWS, AZURE, GOOGLE = CLOUDS
DOCUMENT = '{\n  "instanceId" : "i-0ab",\r\n  "region" : "eu-central-1é"\n}\n'
SIGNATURE = "YWJj\nZGVm"
TOKEN = ok("AQAAA-token==")
ATTESTED = {"encoding": "pkcs7", "signature": "MIIabc="}
JWT = "eyJh.eyJi.c2ln_-"


async def prove(cloud: Cloud, *replies: Reply, connected: bool = True) -> tuple[dict[str, str], ScriptedAsker]:
    clock = ManualClock()
    asker = ScriptedAsker(*replies, connected=connected)
    task = asyncio.ensure_future(cloud.prove(asker.service(clock)))
    while not task.done():
        # What it asks in a thread ends without the clock.
        await asyncio.sleep(0.001)
        if not task.done():
            await clock.advance(0.5)
    return await task, asker


@pytest.mark.spec("agent-api", 12)
async def test_aws() -> None:
    proof, asker = await prove(AWS, TOKEN, ok(SIGNATURE), ok(DOCUMENT))
    assert proof == {"signature": SIGNATURE, "document": DOCUMENT}
    base = "http://169.254.169.254/latest"
    assert asker.requests == [
        ("PUT", f"{base}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}),
        ("GET", f"{base}/dynamic/instance-identity/signature", {"X-aws-ec2-metadata-token": "AQAAA-token=="}),
        ("GET", f"{base}/dynamic/instance-identity/document", {"X-aws-ec2-metadata-token": "AQAAA-token=="}),
    ]


@pytest.mark.spec("agent-api", 13)
async def test_azure() -> None:
    proof, asker = await prove(AZURE, ok(json.dumps({**ATTESTED, "more": 1})))
    assert proof == ATTESTED
    url = "http://169.254.169.254/metadata/attested/document?api-version=2020-09-01"
    assert asker.requests == [("GET", url, {"Metadata": "true"})]


@pytest.mark.parametrize("field", ["signature", "encoding"])
async def test_azure_with_text_that_cannot_be_sent(field: str) -> None:
    with pytest.raises(IdentityError, match="attested document is unusable"):
        await prove(AZURE, *[ok(json.dumps({**ATTESTED, field: "\ud800"}))] * 5)


@pytest.mark.spec("agent-api", 14)
async def test_google() -> None:
    proof, asker = await prove(GOOGLE, ok(JWT, metadata_flavor="Google"))
    assert proof == {"json_web_token": JWT}
    path = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=coder&format=full"
    assert asker.requests == [("GET", f"http://169.254.169.254{path}", {"Metadata-Flavor": "Google"})]


@pytest.mark.parametrize(
    ("cloud", "replies", "text"),
    [
        (AWS, [Answer(403, b"")], "--http-endpoint enabled"),
        (AWS, [Answer(405, b"")], "knows no IMDSv2"),
        (AWS, [Answer(404, b"", {"metadata-flavor": "Google"})], "by the metadata service of Google Cloud"),
        (AWS, [ok("<html>two words")], "AWS's metadata token is unusable"),
        (AWS, [ok("")], "AWS's metadata token is unusable"),
        (AWS, [AskError("Connection refused")], "this may be no machine in AWS"),
        (AWS, [Answer(500, b"")], "the agent asks again with its next attempt"),
        (AWS, [TOKEN, Answer(401, b"")], "answered with status 401"),
        (AWS, [TOKEN, ok("<html>")], "the signature of AWS's identity document is unusable: it is not base64"),
        (AWS, [TOKEN, ok(SIGNATURE), ok(DOCUMENT[:20])], "not JSON, or only a part of it"),
        (AWS, [TOKEN, ok(SIGNATURE), ok(b"\xff")], "not JSON, or only a part of it"),
        (AWS, [TOKEN, ok(SIGNATURE), ok("[" * 50_000)], "not JSON, or only a part of it"),
        (AWS, [TOKEN, ok(SIGNATURE), ok("[]")], "it names no instanceId"),
        (AZURE, [Answer(404, b"")], "--auth auto finds out"),
        (AZURE, [Answer(400, b"")], "must be reached without any proxy"),
        (AZURE, [ok("<html>", content_type="text/html")], "not JSON, or only a part of it (6 bytes, text/html)"),
        (AZURE, [ok("[]")], "it lacks signature or encoding"),
        (AZURE, [ok('{"signature": 1, "encoding": ""}')], "signature or encoding is empty"),
        (GOOGLE, [Answer(404, b"")], "get metadata identity: "),
        (GOOGLE, [Answer(404, b"")], "has no service account"),
        (GOOGLE, [ok(JWT)], "no header Metadata-Flavor: Google"),
        (GOOGLE, [ok("a.b", metadata_flavor="Google")], "not three parts of base64url"),
    ],
)
async def test_what_goes_wrong_says_what_to_do(cloud: Cloud, replies: list[Reply], text: str) -> None:
    with pytest.raises(IdentityError) as caught:
        await prove(cloud, *replies)
    assert text in str(caught.value)


@pytest.mark.parametrize(("container", "text"), [(True, "runs in a container"), (False, "one hop away")])
async def test_an_answer_that_stops_at_the_instance(
    monkeypatch: pytest.MonkeyPatch, container: bool, text: str
) -> None:
    monkeypatch.setattr(aws, "runs_in_container", lambda: container)
    with pytest.raises(IdentityError, match=text) as caught:
        await prove(AWS, None)
    assert "--http-put-response-hop-limit 2" in str(caught.value)
    with pytest.raises(IdentityError) as caught:
        await prove(AWS, None, connected=False)
    assert "hop-limit" not in str(caught.value)


def test_how_a_container_shows(tmp_path: Path) -> None:
    assert not aws.runs_in_container(str(tmp_path))
    process = tmp_path / "proc/1"
    process.mkdir(parents=True)
    (process / "cgroup").write_text("0::/init.scope\n")
    (process / "environ").write_bytes(b"HOME=/\0")
    assert not aws.runs_in_container(str(tmp_path))
    (process / "cgroup").write_text("0::/kubepods/burstable/pod1\n")
    assert aws.runs_in_container(str(tmp_path))
    (process / "cgroup").write_text("0::/\n")
    (process / "environ").write_bytes(b"container=lxc\0")
    assert aws.runs_in_container(str(tmp_path))
    (process / "environ").write_bytes(b"")
    (tmp_path / ".dockerenv").touch()
    assert aws.runs_in_container(str(tmp_path))


@pytest.mark.parametrize(
    ("cloud", "environment", "address"),
    [
        (AWS, {}, "http://169.254.169.254"),
        (AWS, {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}, "http://[fd00:ec2::254]"),
        (AWS, {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv4"}, "http://169.254.169.254"),
        (AWS, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1338/"}, "http://127.0.0.1:1338/"),
        (AZURE, {}, "http://169.254.169.254"),
        (AZURE, {"AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
        (GOOGLE, {}, "http://169.254.169.254"),
        (GOOGLE, {"GCE_METADATA_HOST": "metadata.google.internal"}, "http://metadata.google.internal"),
        (GOOGLE, {"GCE_METADATA_HOST": "127.0.0.1:8080"}, "http://127.0.0.1:8080"),
    ],
)
def test_addresses(cloud: Cloud, environment: Mapping[str, str], address: str) -> None:
    assert str(cloud.address(environment)).rstrip("/") == address.rstrip("/")


@pytest.mark.parametrize(
    ("cloud", "environment"),
    [
        (AWS, {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv5"}),
        (AWS, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "https://x"}),
        (AWS, {"AWS_EC2_METADATA_DISABLED": "TRUE"}),
        (AZURE, {"AZURE_POD_IDENTITY_AUTHORITY_HOST": "x"}),
        (GOOGLE, {"GCE_METADATA_HOST": "a b"}),
    ],
)
def test_addresses_that_are_none(cloud: Cloud, environment: Mapping[str, str]) -> None:
    with pytest.raises(IdentityError, match=next(iter(environment))):
        cloud.address(environment)


async def test_an_address_with_a_path_keeps_it() -> None:
    clock = ManualClock()
    asker = ScriptedAsker(TOKEN)
    await aws.session_token(asker.service(clock, "http://127.0.0.1:1338/aws/"))
    assert asker.requests[0][1] == "http://127.0.0.1:1338/aws/latest/api/token"


@given(st.one_of(st.binary(max_size=200), st.text().map(str.encode)))
def test_no_body_gets_past_the_checks_that_the_proof_cannot_hold(body: bytes) -> None:
    answer = Answer(200, body, {"metadata-flavor": "Google"})
    for check in (aws._check_token, aws._check_signature, aws._check_document, azure._check, google._check):
        try:
            check(answer)
        except ProofError:
            continue
        body.decode()


async def test_cancelling_a_proof() -> None:
    for cloud in CLOUDS:
        task = asyncio.ensure_future(cloud.prove(ScriptedAsker(None).service(ManualClock())))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

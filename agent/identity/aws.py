"""AWS: the instance identity document and its signature, by IMDSv2 (agent-api.md §5.3)."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping

from yarl import URL

from agent.identity.metadata import (
    Answer,
    MetadataError,
    MetadataService,
    ProofError,
    RefusedByMetadataError,
    UnansweredError,
    advice,
    endpoint,
)
from agent.identity.token import IdentityError

NAME = "aws-instance-identity"
ADDRESS = URL("http://169.254.169.254")
ADDRESS_IPV6 = URL("http://[fd00:ec2::254]")
TOKEN = "/latest/api/token"  # noqa: S105 - a path
TOKEN_SECONDS = "21600"  # noqa: S105 - how long a token of the metadata service lives
SIGNATURE = "/latest/dynamic/instance-identity/signature"
DOCUMENT = "/latest/dynamic/instance-identity/document"

_TOKEN = re.compile(rb"[\x21-\x7e]{1,4096}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]+=*[\r\n]*")
_RAISE_THE_LIMIT = (
    "aws ec2 modify-instance-metadata-options --instance-id ID --http-tokens required --http-put-response-hop-limit 2"
)


def address(environment: Mapping[str, str]) -> URL:
    """Where the service is, by the variables of AWS's own tools. Raises `IdentityError`."""
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise IdentityError("AWS_EC2_METADATA_DISABLED is true: unset it, or choose another --auth")
    variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    if text := environment.get(variable):
        return endpoint(variable, text)
    mode = environment.get(f"{variable}_MODE", "IPv4")
    if mode.lower() not in ("ipv4", "ipv6"):
        raise IdentityError(f'{variable}_MODE is "{mode}"; it may be IPv4 or IPv6')
    return ADDRESS_IPV6 if mode.lower() == "ipv6" else ADDRESS


async def prove(service: MetadataService) -> dict[str, str]:
    """`signature` and `document`, byte for byte as they came. Raises `IdentityError`."""
    try:
        headers = {"X-aws-ec2-metadata-token": await session_token(service)}
        signature = await service.ask("GET", SIGNATURE, headers, _check_signature)
        document = await service.ask("GET", DOCUMENT, headers, _check_document)
    except MetadataError as error:
        remedy = await asyncio.to_thread(_advice, error)
        raise IdentityError(f"{error}; {remedy}") from error
    return {"signature": signature.body.decode("ascii"), "document": document.body.decode()}


async def session_token(service: MetadataService) -> str:
    """What IMDSv2 wants with every other request. Raises `MetadataError`."""
    answer = await service.ask("PUT", TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": TOKEN_SECONDS}, _check_token)
    return answer.body.decode("ascii")


def _advice(error: MetadataError) -> str:
    match error:
        case UnansweredError(silent=True) if runs_in_container():
            return (
                "the agent runs in a container, and AWS sends this answer not farther than the instance unless its "
                f"hop limit is 2 or more: {_RAISE_THE_LIMIT}"
            )
        case UnansweredError(silent=True):
            return f"where the agent is one hop away from the instance, its hop limit must be 2: {_RAISE_THE_LIMIT}"
        case RefusedByMetadataError(status=403):
            return (
                "the metadata of this instance are switched off: aws ec2 modify-instance-metadata-options "
                "--instance-id ID --http-endpoint enabled"
            )
        case RefusedByMetadataError(status=404 | 405):
            return (
                "what answers knows no IMDSv2: it may be another cloud (--auth auto finds out), or a proxy or "
                "emulation of IMDSv1, which this agent does not use"
            )
        case _:
            return advice(error, "AWS")


def _check_token(answer: Answer) -> None:
    if _TOKEN.fullmatch(answer.body) is None:
        raise ProofError("AWS's metadata token", "it is not one word of plain characters", answer)


def _check_signature(answer: Answer) -> None:
    if _BASE64.fullmatch(answer.body) is None:
        raise ProofError("the signature of AWS's identity document", "it is not base64", answer)


def _check_document(answer: Answer) -> None:
    thing = "AWS's identity document"
    try:
        document = json.loads(answer.body.decode())
    except (ValueError, RecursionError):
        raise ProofError(thing, "it is not JSON, or only a part of it", answer) from None
    if not isinstance(document, dict) or not isinstance(document.get("instanceId"), str):
        raise ProofError(thing, "it names no instanceId", answer)


def runs_in_container(root: str = "/") -> bool:
    """Whether this process is in a container, as far as Docker, Podman, Kubernetes and LXC let it know."""
    if any(os.path.exists(os.path.join(root, name)) for name in (".dockerenv", "run/.containerenv")):
        return True
    for name, signs in (
        ("proc/1/environ", (b"container=",)),
        ("proc/1/cgroup", (b"docker", b"kubepods", b"containerd", b"libpod", b"lxc")),
    ):
        try:
            with open(os.path.join(root, name), "rb") as file:
                content = file.read(64 * 1024)
        except OSError:  # not readable for this user: it says nothing
            continue
        if any(sign in content for sign in signs):
            return True
    return False

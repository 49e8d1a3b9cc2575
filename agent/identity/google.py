"""Google Cloud: the instance's identity token, a JWT (agent-api.md §5.5)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from yarl import URL

from agent.identity.metadata import (
    Answer,
    MetadataError,
    MetadataService,
    ProofError,
    RefusedByMetadataError,
    advice,
    endpoint,
)
from agent.identity.token import IdentityError

NAME = "google-instance-identity"
ADDRESS = URL("http://169.254.169.254")
IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=coder&format=full"
HEADERS = {"Metadata-Flavor": "Google"}

_JWT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def address(environment: Mapping[str, str]) -> URL:
    """Where the service is: `GCE_METADATA_HOST`, a host with or without a port. Raises `IdentityError`."""
    host = environment.get("GCE_METADATA_HOST")
    return endpoint("GCE_METADATA_HOST", host if "://" in host else f"http://{host}") if host else ADDRESS


async def prove(service: MetadataService) -> dict[str, str]:
    """`json_web_token`. Raises `IdentityError`."""
    try:
        answer = await service.ask("GET", IDENTITY, HEADERS, _check)
    except MetadataError as error:
        raise IdentityError(f"get metadata identity: {error}; {_advice(error)}") from error
    return {"json_web_token": answer.body.strip().decode("ascii")}


async def is_there(service: MetadataService) -> None:
    """Raises `MetadataError` unless Google's service answers."""
    await service.ask("GET", "/", HEADERS, lambda answer: _check_flavor(answer, "Google's metadata"))


def _check_flavor(answer: Answer, thing: str) -> None:
    # Google's own rule for telling its service from whoever else answers at this address.
    if answer.headers.get("metadata-flavor") != "Google":
        raise ProofError(thing, "the answer has no header Metadata-Flavor: Google", answer)


def _check(answer: Answer) -> None:
    thing = "Google's identity token"
    _check_flavor(answer, thing)
    if _JWT.fullmatch(answer.body.strip()) is None:
        raise ProofError(thing, "it is not three parts of base64url", answer)


def _advice(error: MetadataError) -> str:
    match error:
        case RefusedByMetadataError(status=404):
            return (
                "the instance has no service account, or this is another cloud: give it one "
                "(gcloud compute instances set-service-account), or use --auth auto"
            )
        case _:
            return advice(error, "Google Cloud")

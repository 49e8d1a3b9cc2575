"""Azure: the attested document, a JSON document in a PKCS#7 envelope (agent-api.md §5.4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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

NAME = "azure-instance-identity"
ADDRESS = URL("http://169.254.169.254")
ATTESTED = "/metadata/attested/document?api-version=2020-09-01"
VERSIONS = "/metadata/versions"
HEADERS = {"Metadata": "true"}


def address(environment: Mapping[str, str]) -> URL:
    """Where the service is, by the variable that Azure's own libraries read. Raises `IdentityError`."""
    variable = "AZURE_POD_IDENTITY_AUTHORITY_HOST"
    text = environment.get(variable)
    return endpoint(variable, text) if text else ADDRESS


async def prove(service: MetadataService) -> dict[str, str]:
    """`signature` and `encoding` as they came. Raises `IdentityError`."""
    try:
        answer = await service.ask("GET", ATTESTED, HEADERS, _check)
    except MetadataError as error:
        raise IdentityError(f"{error}; {_advice(error)}") from error
    return _fields(answer)


async def is_there(service: MetadataService) -> None:
    """Raises `MetadataError` unless Azure's service answers."""
    await service.ask("GET", VERSIONS, HEADERS, _check_versions)


def _check_versions(answer: Answer) -> None:
    try:
        versions = json.loads(answer.body.decode())["apiVersions"]
    except (ValueError, RecursionError, KeyError, TypeError):
        versions = None
    if not isinstance(versions, list):
        raise ProofError("Azure's list of versions", "it has no apiVersions", answer)


def _fields(answer: Answer) -> dict[str, Any]:
    document = json.loads(answer.body.decode())
    return {name: document[name] for name in ("signature", "encoding")}


def _check(answer: Answer) -> None:
    try:
        fields = _fields(answer)
    except (ValueError, RecursionError):
        raise ProofError("Azure's attested document", "it is not JSON, or only a part of it", answer) from None
    except (KeyError, TypeError):
        raise ProofError("Azure's attested document", "it lacks signature or encoding", answer) from None
    if not all(isinstance(value, str) and value and value.isascii() for value in fields.values()):
        raise ProofError("Azure's attested document", "signature or encoding is empty, or no plain text", answer)


def _advice(error: MetadataError) -> str:
    match error:
        case RefusedByMetadataError(status=404 | 405):
            return "it may be another cloud: --auth auto finds out"
        case _:
            return advice(error, "Azure")

"""What a verification comes to."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_ID: Final = 128
"""Characters of an instance's id that the database holds; a longer one belongs to nobody."""


class Cloud(Enum):
    """The value is what people read; `short` names the endpoint and what is stored."""

    AWS = "AWS"
    AZURE = "Azure"
    GOOGLE = "GCP"

    @property
    def short(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Instance:
    """A virtual machine, as its cloud vouches for it. Empty: the cloud did not say.

    `account` is the AWS account, the Azure subscription or the Google project.
    """

    cloud: Cloud
    id: str
    account: str = ""
    region: str = ""


class IdentityError(Exception):
    """No proof of an identity. `reason` is one word or two for the audit log; `detail` is what the agent is told, and
    may be logged: it has nothing of the document, the token or the signature in it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class ClaimsError(IdentityError):
    """The token is genuine, but what it says of the instance has the wrong form."""


def decode_base64(text: str, *, max_size: int) -> bytes:
    """Standard base64 with padding; line ends are passed over. Raises ValueError, also where the last character has
    bits that no byte takes: otherwise one proof could be written in several ways."""
    text = text.replace("\r", "").replace("\n", "")
    if len(text) > (max_size + 2) // 3 * 4:
        raise ValueError(f"it is longer than {max_size} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("it is not standard base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("it is not canonical base64")
    return data

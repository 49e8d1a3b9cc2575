"""The SSH key that a user's workspaces use for git (agent-api.md §2.5)."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True, slots=True)
class SshKeyPair:
    """Both halves in OpenSSH's own formats, each ending in a line feed."""

    public: str
    private: str = field(repr=False)


def generate() -> SshKeyPair:
    """A new ed25519 key."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return SshKeyPair(public=public.decode() + "\n", private=private.decode())

"""What the control plane lends to git in a workspace (agent-api.md §2.4, §2.5). Secrets are kept out of every repr."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GitSshKey:
    """The owner's key pair, in OpenSSH's formats."""

    public_key: str
    private_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GitToken:
    """What to log in to a git host with; only `url` is set where the owner has not authorised that host yet."""

    username: str = field(default="", repr=False)
    """For some hosts the secret itself, with an empty password."""
    password: str = field(default="", repr=False)
    url: str = ""

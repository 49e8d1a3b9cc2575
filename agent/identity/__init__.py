"""Who am I: where the token comes from that proves this agent to the control plane (agent-api.md §5)."""

from agent.identity.token import (
    CredentialSource,
    FileToken,
    FixedToken,
    IdentityError,
    token_source,
)

__all__ = ["CredentialSource", "FileToken", "FixedToken", "IdentityError", "token_source"]

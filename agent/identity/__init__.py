"""Who am I: where the token comes from that proves this agent to the control plane (agent-api.md §5)."""

from agent.identity.auto import Auto
from agent.identity.clouds import CLOUDS, Cloud
from agent.identity.instance import Exchange, ExchangeRefusedError, InstanceIdentity
from agent.identity.token import CredentialSource, FileToken, FixedToken, IdentityError, token_source

__all__ = [
    "CLOUDS",
    "Auto",
    "Cloud",
    "CredentialSource",
    "Exchange",
    "ExchangeRefusedError",
    "FileToken",
    "FixedToken",
    "IdentityError",
    "InstanceIdentity",
    "token_source",
]

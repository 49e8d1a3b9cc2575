"""Which cloud instance is asking, proved by what its cloud signed (agent-api.md §5).

`aws`, `azure` and `google` decide, without I/O; `fetch` gets what they miss (keys, issuers); `config` reads what the
owner of the server wants; `verifiers` puts these together.
"""

from __future__ import annotations

from agent.server.identity.config import IdentityConfig, IdentityConfigError, read_config
from agent.server.identity.instance import ClaimsError, Cloud, IdentityError, Instance
from agent.server.identity.verifiers import Verifiers

__all__ = [
    "ClaimsError",
    "Cloud",
    "IdentityConfig",
    "IdentityConfigError",
    "IdentityError",
    "Instance",
    "Verifiers",
    "read_config",
]

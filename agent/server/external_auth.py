"""Which external provider a git URL belongs to, and what git is told to log in with (agent-api.md §2.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_MATCH = 2048
"""Characters of a URL that the owner's regular expressions are run over."""


class ProviderError(ValueError):
    """A provider cannot be configured like this; `field` is the one at fault."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class ProviderNotFoundError(LookupError):
    """No provider for the request; the text is the answer's `detail`."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One configured provider. `type` is e.g. `github`; an empty `regex` matches no URL, only `id` finds it."""

    id: str
    type: str
    regex: str = ""
    display_name: str = ""


def check_provider(provider: Provider) -> None:
    """Raises `ProviderError`."""
    if len(provider.id) > 64 or re.fullmatch(r"[a-z0-9](?:-?[a-z0-9])*", provider.id) is None:
        raise ProviderError("id", "must be of lower-case letters, digits and single hyphens, at most 64 characters")
    if not 0 < len(provider.type) <= 32:
        raise ProviderError("type", "must have 1 to 32 characters; it is for example github, gitlab or bitbucket-cloud")
    if len(provider.display_name) > 128:
        raise ProviderError("display_name", "is longer than 128 characters")
    if len(provider.regex) > 512:
        raise ProviderError("regex", "is longer than 512 characters")
    try:
        re.compile(provider.regex)
    except re.error as error:
        raise ProviderError("regex", f"{provider.regex!r} is no regular expression: {error}") from error


def choose(providers: Sequence[Provider], provider_id: str, match: str) -> Provider:
    """The provider with that id or else the last whose regex is found in `match`. Raises `ProviderNotFoundError`."""
    for provider in providers:
        if provider_id and provider.id == provider_id:
            return provider
    if match:
        for provider in reversed(providers):
            if provider.regex and re.search(provider.regex, match[:MAX_MATCH]):
                return provider
        regexes = [f'{provider.id}="{provider.regex}"' for provider in providers if provider.regex]
        if regexes:
            raise ProviderNotFoundError(
                "The configured external auth provider have regex filters that do not match the url. "
                f"Provider url regex: {','.join(regexes)}"
            )
    raise ProviderNotFoundError("External auth provider not found.")


def git_credentials(provider_type: str, token: str) -> tuple[str, str]:
    """User name and password for git."""
    if provider_type == "gitlab":
        return "oauth2", token
    if provider_type in ("bitbucket-cloud", "bitbucket-server"):
        return "x-token-auth", token
    return token, ""

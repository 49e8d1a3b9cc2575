"""What can go wrong between the agent and its control plane, one type per meaning."""

from __future__ import annotations

from dataclasses import dataclass


class ControlError(Exception):
    """Base of this module's errors."""


class UnreachableError(ControlError):
    """No answer: name resolution, connect, TLS, a broken connection or a deadline. The text names the address."""


@dataclass(frozen=True, slots=True)
class Validation:
    """One entry of an error body's `validations` (agent-api.md §1.5)."""

    field: str
    detail: str


class RefusedError(ControlError):
    """The server answered with a status other than the expected one (agent-api.md §1.5)."""

    def __init__(
        self,
        request: str,
        status: int,
        message: str,
        detail: str = "",
        validations: tuple[Validation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        text = f"{request}: {status} {message}"
        for part in [detail, *(f"{v.field}: {v.detail}" for v in validations)]:
            if part:
                text += f" ({part})"
        if status == 401:
            text += "; check the agent token, and that its workspace build is the latest"
        super().__init__(text)
        self.status = status
        self.message = message
        self.detail = detail
        self.validations = validations
        self.retry_after = retry_after
        """Seconds of a `Retry-After` header, if there was one."""

    @property
    def away(self) -> bool:
        """Whether a proxy answered for a server that is down: as good as unreachable."""
        return self.status in (502, 503, 504)


class RedirectError(ControlError):
    """The server redirects to another origin, where the token must not go."""


class VersionMismatchError(ControlError):
    """The server speaks no version of the API that this agent can: one of the two must be upgraded."""

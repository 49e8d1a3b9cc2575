"""Answers that are errors (agent-api.md §1.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

HIDDEN = "Resource not found or you do not have access to this resource"


class Validation(msgspec.Struct, frozen=True):
    """One mistake, by the name of the field in JSON."""

    field: str
    detail: str


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True, tag=False):
    """The body of every refusal."""

    message: str
    detail: str = ""
    validations: Sequence[Validation] = ()


class ApiError(Exception):
    """A request is answered with this status and body."""

    def __init__(
        self,
        status: int,
        message: str,
        detail: str = "",
        validations: Sequence[Validation] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.body, self.headers = status, ErrorBody(message, detail, validations), dict(headers or {})


def invalid(*mistakes: Validation) -> ApiError:
    """400 with one line for each mistake."""
    return ApiError(400, "Validation failed.", validations=mistakes)


def forbidden() -> ApiError:
    return ApiError(
        403,
        "Forbidden.",
        "You don't have permission to view this content. If you believe this is a mistake, please contact your "
        "administrator or try signing in with different credentials.",
    )


def hidden() -> ApiError:
    """404 for what does not exist, and for what this caller must not learn to exist."""
    return ApiError(404, HIDDEN)

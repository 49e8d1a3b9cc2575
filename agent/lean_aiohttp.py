"""aiohttp, imported without what makes its import slow; import this before anything else imports aiohttp.

While it is imported, aiohttp loads the machine's certificate authorities twice: an eighth of the time from the agent's
start to `ready`, and 3 MB, though most agents make one TLS connection or none. Here they are loaded when the first
connection asks for them. Whoever uses aiohttp notices nothing.
"""

from __future__ import annotations

import ssl
from typing import Any


class _Context(ssl.SSLContext):
    """Loads the authorities when it is first used, and is an ordinary context from then on."""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self._load()
        return self.wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        self._load()
        return self.wrap_socket(*args, **kwargs)

    def _load(self) -> None:
        self.__class__ = ssl.SSLContext  # type: ignore[assignment]
        self.set_default_verify_paths()


def _import() -> None:
    contexts: list[ssl.SSLContext] = []

    def later(context: ssl.SSLContext) -> None:
        contexts.append(context)

    usual = ssl.SSLContext.set_default_verify_paths
    ssl.SSLContext.set_default_verify_paths = later  # type: ignore[method-assign,assignment]
    try:
        import aiohttp  # noqa: F401
    finally:
        ssl.SSLContext.set_default_verify_paths = usual  # type: ignore[method-assign]
    for context in contexts:
        context.__class__ = _Context


_import()

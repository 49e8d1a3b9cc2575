"""Where local servers listen: `127.0.0.1:2112`, `[::1]:2112`, `:2112`, or `unix:/path/of/a/socket`."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class AddressError(ValueError):
    """This is no address to listen on; the text says what one looks like."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """A TCP address, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.path is not None or self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str) -> LocalAddress:
    """Raises `AddressError`. No host means every address of the machine, as `:2112` does elsewhere."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise AddressError(f'"{text}": the path of a socket must be absolute')
        return LocalAddress(path=path)
    host, colon, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AddressError(f'"{text}" is no address to listen on; write it like 127.0.0.1:2112 or unix:/run/agent.sock')
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if host not in ("", "localhost"):
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise AddressError(f'"{text}": "{host}" is no IP address; write it like 127.0.0.1:2112') from error
    return LocalAddress(host or "::", int(port))


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket address, which has room for 107 bytes only. Raises `OSError`."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)

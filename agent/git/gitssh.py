"""`gitssh`: ssh for git, with the keys that the user has and then the one that the control plane keeps for them.

daemon.md §6.1. Whatever keeps the control plane's key from us costs that key, not the connection: the user's own keys
may do.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from agent.api.git import GitSshKey
from agent.clock import Clock, wait_for

CONFIG_LIMIT = 10.0
"""Seconds for `ssh -G`, which reads configuration and may look names up."""
USUAL_IDENTITIES = ("rsa", "dsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss")
"""Of `~/.ssh/id_…`; used where ssh does not say which files it would try."""
CONNECTION_FAILED = 255
"""ssh's exit status for failures of its own; others are the remote command's."""


class SshError(Exception):
    """ssh could not be started; the text says why."""


async def run_ssh(arguments: Sequence[str], key: GitSshKey | None, environment: Mapping[str, str], clock: Clock) -> int:
    """Run `ssh arguments` with this process's standard streams; its exit status, negative when a signal ended it.

    Cancelling it kills ssh. The key's file is gone afterwards in any case but a SIGKILL. Raises `SshError`.
    """
    if key is None:
        return await _ssh(arguments, environment)
    # -i takes ssh's defaults away, so they are named, too.
    identities = await _identities(arguments, environment, clock)
    with _key_file(key, environment) as file:
        options = [option for identity in (*identities, file) for option in ("-i", identity)]
        return await _ssh([*options, *arguments], environment)


async def _ssh(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    try:
        process = await asyncio.create_subprocess_exec("ssh", *arguments, env=environment)
    except OSError as error:
        raise SshError(f"cannot run ssh: {error.strerror or error}; is OpenSSH's client installed?") from error
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _identities(arguments: Sequence[str], environment: Mapping[str, str], clock: Clock) -> list[str]:
    """The user's key files that ssh would try for this destination, those that exist."""
    home = environment.get("HOME") or os.path.expanduser("~")
    try:
        process = await asyncio.create_subprocess_exec(
            "ssh",
            "-G",
            *arguments,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise SshError(f"cannot run ssh: {error.strerror or error}; is OpenSSH's client installed?") from error
    try:
        output, _ = await wait_for(clock, process.communicate(), CONFIG_LIMIT)
    except TimeoutError:
        output = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = identity_files(output.decode("utf-8", "surrogateescape")) if process.returncode == 0 else []
    if process.returncode != 0:
        found = [f"~/.ssh/id_{kind}" for kind in USUAL_IDENTITIES]
    paths = [os.path.join(home, path[2:]) if path.startswith("~/") else path for path in found]
    return [path for path in paths if os.path.isfile(path)]


def identity_files(configuration: str) -> list[str]:
    """The `identityfile` values of `ssh -G`."""
    pairs = (line.partition(" ") for line in configuration.splitlines())
    return [value for name, _, value in pairs if name == "identityfile" and value]


@contextmanager
def _key_file(key: GitSshKey, environment: Mapping[str, str]) -> Iterator[str]:
    try:
        descriptor, path = tempfile.mkstemp(prefix="coder-gitsshkey-", dir=environment.get("TMPDIR") or "/tmp")  # noqa: S108
    except OSError as error:
        raise SshError(f"cannot write the SSH key to a temporary file: {error}; set TMPDIR") from error
    try:
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key.private_key)
        except OSError as error:
            raise SshError(f'cannot write the SSH key to "{path}": {error.strerror}; set TMPDIR') from error
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)

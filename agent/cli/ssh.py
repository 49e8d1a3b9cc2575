"""`workspace-agent ssh AGENT [COMMAND…]`, and the same with `--stdio` as a ProxyCommand."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

import click

from agent.cli import openssh
from agent.cli.command import run
from agent.cli.errors import CliError
from agent.cli.reaching import connected, interruptible

PORT: Final = 1
"""The agent's SSH server in the tunnel; every agent has it there (terminal-ssh-http.md §3)."""
_OPENSSH_ONLY: Final = ("option", "local", "remote", "dynamic", "forward_agent")


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--stdio", is_flag=True, help="Be a ProxyCommand: join standard input and output with the agent.")
@click.option("--suffix", default="", help="With --stdio: take .SUFFIX off the name.")
@click.option("-t", "--tty", is_flag=True, help="A terminal for the command, too.")
@click.option("-L", "--local", multiple=True, metavar="FORWARD", help="A port here that leads there, as ssh has it.")
@click.option("-R", "--remote", multiple=True, metavar="FORWARD", help="A port there that leads here, as ssh has it.")
@click.option("-D", "--dynamic", multiple=True, metavar="[ADDRESS:]PORT", help="A SOCKS port here, as ssh has it.")
@click.option("-A", "--forward-agent", is_flag=True, help="Lend the SSH agent that has your keys.")
@click.option("-o", "--option", multiple=True, metavar="NAME=VALUE", help="Any other option of OpenSSH's ssh.")
@click.argument("agent")
@click.argument("command", nargs=-1)
def ssh(agent: str, command: tuple[str, ...], stdio: bool, suffix: str, tty: bool, **others: tuple[str, ...]) -> None:
    """A shell in AGENT (name or id), or COMMAND there; its exit code is this one's.

    OpenSSH's ssh does it where there is one; 255 then says that there was no connection.
    """
    if stdio:
        if command or tty or any(others.values()):
            raise click.UsageError("--stdio takes nothing but an agent")
        sys.exit(run(_stdio(openssh.check_name(without_suffix(agent, suffix)))))
    openssh.check_name(agent)
    if openssh.installed("ssh"):
        openssh.execute("ssh", [*_flags(tty, others), "--", agent, *command])
    if any(others[name] for name in _OPENSSH_ONLY):
        raise CliError("forwards and options need OpenSSH's ssh, which is not installed")
    from agent.cli.ssh_client import FAILED, session

    try:
        sys.exit(run(session(agent, command, tty=tty or not command)))
    except CliError as error:
        error.show()
        sys.exit(FAILED)  # as with OpenSSH's


def without_suffix(host: str, suffix: str) -> str:
    """The agent that a host name of an ssh configuration means."""
    ending = f".{suffix.lower()}"
    return host[: -len(ending)] if suffix and host.lower().endswith(ending) else host


def _flags(tty: bool, others: dict[str, tuple[str, ...]]) -> list[str]:
    flags = ["-t"] if tty else []
    flags += ["-A"] if others["forward_agent"] else []
    for flag, name in (("-L", "local"), ("-R", "remote"), ("-D", "dynamic"), ("-o", "option")):
        for value in others[name]:
            flags += [flag, value]
    return flags


async def _stdio(agent: str) -> int:
    from agent.cli.stdio import OutputGoneError
    from agent.protocol.tcp import TcpError

    # OpenSSH says by SIGHUP that it needs its ProxyCommand no more.
    with interruptible(signal.SIGHUP) as stopped:
        joined = asyncio.create_task(_join(agent), name="ssh --stdio")
        stopping = asyncio.create_task(stopped.wait(), name="signals")
        try:
            await asyncio.wait({joined, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if joined.done():
                joined.result()
            return 0
        except OutputGoneError:
            return 0  # whoever started us has ended
        except TcpError as error:
            raise CliError(f"{agent}: the connection broke: {error}") from error
        finally:
            for task in (joined, stopping):
                task.cancel()
            await asyncio.gather(joined, stopping, return_exceptions=True)


async def _join(agent: str) -> None:
    from agent.cli.stdio import join

    async with connected(agent) as connection:
        await join(await connection.dial(PORT), sys.stdin.fileno(), sys.stdout.fileno())

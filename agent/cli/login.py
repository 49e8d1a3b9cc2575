"""`workspace-agent login URL`."""

from __future__ import annotations

import click

from agent.cli import session
from agent.cli.command import run


@click.command()
@click.argument("url")
@click.option("--token", envvar="CODER_SESSION_TOKEN", help="Use this token instead of e-mail and password.")
@click.option("--email", help="Asked for where it is not given.")
@click.option("--password", envvar="WORKSPACE_AGENT_PASSWORD", help="Asked for where it is not given.")
@click.option("--username", help="Name of the first user, where the server has none yet.")
def login(url: str, token: str | None, email: str | None, password: str | None, username: str | None) -> None:
    """Log in at the server URL, and remember it for the other commands.

    URL may also be a one-time login link. A server that has no user yet gets its first one, an owner.
    """
    from agent.cli.client import base_url

    base, rest = base_url(url)
    if not token:
        if rest.startswith("/login?"):
            token = run(_redeem(base, rest))
        else:
            token = _password_login(base, email, password, username)
    current = session.Session(base, token)
    name = run(_who(current))
    session.store(current)
    click.echo(f"logged in at {base} as {click.style(name, bold=True)}")


def _password_login(base: str, email: str | None, password: str | None, username: str | None) -> str:
    first = run(_is_without_users(base))
    if first:
        click.echo(f"{base} has no user yet; this makes the first one, an owner")
        username = username or click.prompt("Username", default="admin")
    email = email or click.prompt("E-mail")
    password = password or click.prompt("Password", hide_input=True, confirmation_prompt=first)
    return run(_log_in(base, {"email": email, "password": password}, username if first else None))


async def _redeem(base: str, link: str) -> str:
    from agent.cli.client import Client

    async with Client(session.Session(base, "")) as client:
        return await client.redeem(link)


async def _is_without_users(base: str) -> bool:
    from agent.cli.client import ApiError, Client

    async with Client(session.Session(base, "")) as client:
        try:
            await client.get("users/first")
        except ApiError as error:
            if error.status == 404:
                return True
            raise
        return False


async def _log_in(base: str, credentials: dict[str, str | None], first_user: str | None) -> str:
    from agent.cli.client import Client

    async with Client(session.Session(base, "")) as client:
        if first_user is not None:
            await client.post("users/first", {**credentials, "username": first_user})
        return str((await client.post("users/login", credentials))["session_token"])


async def _who(current: session.Session) -> str:
    from agent.cli.client import Client

    async with Client(current) as client:
        return str((await client.get("users/me"))["username"])

"""`workspace-agent login URL`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli import session
from agent.cli.command import run

if TYPE_CHECKING:
    from agent.cli.client import Client


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
    current, name = run(_login(url, token, email, password, username))
    session.store(current)
    click.echo(f"logged in at {current.url} as {click.style(name, bold=True)}")


async def _login(
    text: str, token: str | None, email: str | None, password: str | None, username: str | None
) -> tuple[session.Session, str]:
    """The session, and the name of the user whose it is."""
    from agent.cli.client import Client, base_url

    url, rest = base_url(text)
    if not token:
        async with Client(session.Session(url, "")) as client:
            if rest.startswith("/login?"):
                token = await client.redeem(rest)
            else:
                token = await _password_login(client, email, password, username)
    current = session.Session(url, token)
    async with Client(current) as client:
        return current, (await client.get("users/me"))["username"]


async def _password_login(client: Client, email: str | None, password: str | None, username: str | None) -> str:
    from agent.cli.client import ApiError

    try:
        await client.get("users/first")
        first = False
    except ApiError as error:
        if error.status != 404:
            raise
        first = True
    if first:
        click.echo(f"{client.url} has no user yet; this makes the first one, an owner")
        username = username or click.prompt("Username", default="admin")
    email = email or click.prompt("E-mail")
    password = password or click.prompt("Password", hide_input=True, confirmation_prompt=first)
    credentials = {"email": email, "password": password}
    if first:
        await client.post("users/first", {**credentials, "username": username})
    answer = await client.post("users/login", credentials)
    return str(answer["session_token"])

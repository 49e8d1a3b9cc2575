"""`workspace-agent users …`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.command import ask, json_option, segment, with_client
from agent.cli.output import ago, print_json, print_table

if TYPE_CHECKING:
    from agent.cli.client import Client

_password = click.option(
    "--password",
    envvar="WORKSPACE_AGENT_PASSWORD",
    prompt=True,
    hide_input=True,
    confirmation_prompt=True,
    help="Asked for where it is not given.",
)


@click.group()
def users() -> None:
    """Manage the people who may log in (for owners)."""


@users.command("list")
@json_option
@with_client
async def list_(client: Client, as_json: bool) -> None:
    """List all users."""
    found = await client.get("users")
    if as_json:
        print_json(found)
        return
    print_table(
        ["USERNAME", "E-MAIL", "ROLES", "LAST SEEN"],
        [
            [
                user["username"],
                user["email"],
                ", ".join(role["name"] for role in user["roles"]) or "member",
                ago(user.get("last_seen_at")),
            ]
            for user in found["users"]
        ],
    )


@users.command()
@click.argument("username")
@click.option("--email", prompt="E-mail", help="Asked for where it is not given.")
@click.option("--owner", is_flag=True, help="May manage users and see the agents of all.")
@_password
@json_option
@with_client
async def create(client: Client, username: str, email: str, owner: bool, password: str, as_json: bool) -> None:
    """Create a user."""
    body = {"username": username, "email": email, "password": password, "role": "owner" if owner else "member"}
    created = await client.post("users", body)
    if as_json:
        print_json(created)
        return
    click.echo(f"created {username}")


@users.command()
@click.argument("username")
@click.confirmation_option("-y", "--yes", prompt="Delete the user?", help="Do not ask.")
@with_client
async def delete(client: Client, username: str) -> None:
    """Delete a user who has no agents."""
    await client.delete(f"users/{segment(username)}")
    click.echo(f"deleted {username}")


@users.command()
@click.argument("username")
@click.option("--old-password", help="Needed for your own; asked for where it is not given.")
@_password
def password(username: str, old_password: str | None, password: str) -> None:
    """Set a user's password; the user's sessions end."""
    if not old_password and username in ("me", ask(lambda client: client.get("users/me"))["username"]):
        old_password = click.prompt("Old password", hide_input=True)
    body = {"password": password, "old_password": old_password or ""}
    ask(lambda client: client.request("PUT", f"users/{segment(username)}/password", json_body=body))
    click.echo(f"set the password of {username}")

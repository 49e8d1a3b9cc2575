"""`workspace-agent tokens …`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.command import json_option, segment, with_client
from agent.cli.output import ago, print_json, print_table

if TYPE_CHECKING:
    from agent.cli.client import Client


NANOSECONDS_PER_DAY = 86400 * 10**9


@click.group()
def tokens() -> None:
    """Manage your API tokens, for programs that act for you."""


@tokens.command("list")
@json_option
@with_client
async def list_(client: Client, as_json: bool) -> None:
    """List your tokens."""
    found = await client.get("users/me/keys/tokens")
    if as_json:
        print_json(found)
        return
    print_table(
        ["ID", "NAME", "CREATED", "LAST USED", "EXPIRES"],
        [
            [key["id"], key["token_name"] or "-", ago(key["created_at"]), ago(key["last_used"]), ago(key["expires_at"])]
            for key in found
        ],
    )


@tokens.command()
@click.option("--name", default="", help="What it is for.")
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="Until it expires.")
@json_option
@with_client
async def create(client: Client, name: str, days: int, as_json: bool) -> None:
    """Create an API token and print it; it is not shown again."""
    body = {"token_name": name, "lifetime": days * NANOSECONDS_PER_DAY}
    answer = await client.post("users/me/keys/tokens", body)
    if as_json:
        print_json(answer)
        return
    click.echo(answer["key"])


@tokens.command()
@click.argument("id")
@with_client
async def delete(client: Client, id: str) -> None:
    """Delete a token by its id or name; it stops working at once."""
    await client.delete(f"users/me/keys/{segment(id)}")
    click.echo(f"deleted {id}")

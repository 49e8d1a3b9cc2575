"""A fake metadata service as a process: for trying agents by hand, in a container or a network namespace.

    ip netns add vm && ip -n vm link set lo up && ip -n vm address add 169.254.169.254/32 dev lo
    ip netns exec vm python -m agent.testing.metadata aws --instance-id i-1 --address 169.254.169.254 --port 80

While it runs, `curl -X PATCH http://ADDRESS:PORT/fake -d '{"faults": {"status": 503}}'` makes it fail, `{"faults": {}}`
heals it, `{"instance_id": "i-2"}` makes the machine another one, `{"rotate": true}` gives it new keys.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from agent.testing.metadata import KEYS, Authority, FakeAws, FakeAzure, FakeGoogle, FakeMetadata, Instance


def make(cloud: str, authority: Authority, instance: Instance) -> FakeMetadata:
    """The fake of that cloud."""
    match cloud:
        case "aws":
            return FakeAws(authority.aws, instance)
        case "azure":
            return FakeAzure(authority.azure, instance)
        case _:
            return FakeGoogle(authority.google, instance)


@click.command()
@click.argument("cloud", type=click.Choice(["aws", "azure", "google"]))
@click.option("--instance-id", required=True, help="Who the machine is.")
@click.option("--address", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, help="0 takes a free one.  [default: 0]")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=".",
    help="Where the file for the server's --instance-identity is put.  [default: the current one]",
)
def main(cloud: str, instance_id: str, address: str, port: int, directory: Path) -> None:
    """Serve the metadata of one machine in CLOUD until a signal."""
    asyncio.run(_serve(cloud, Instance(instance_id), address, port, directory))


async def _serve(cloud: str, instance: Instance, address: str, port: int, directory: Path) -> None:
    authority = Authority()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with make(cloud, authority, instance).listening(address, port) as url:
        file = await asyncio.to_thread(authority.write, directory, f"{url}{KEYS}" if cloud == "google" else "")
        click.echo(f"serving the metadata of {instance.id} on {url}")
        click.echo(f"workspace-agent server --instance-identity {file}")
        await stop.wait()


if __name__ == "__main__":
    main()

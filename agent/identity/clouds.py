"""The three clouds as one table: how each proves an instance, and how one tells which of them a machine is in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from yarl import URL

from agent.identity import aws, azure, google
from agent.identity.metadata import MetadataService


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud. `method` is its name in `--auth` and at the control plane.

    `address` gives the metadata service's address and raises `IdentityError` where the environment names none that can
    be used. `prove` gives the fields of the proof. `is_there` asks what only this cloud's service answers, and raises
    `MetadataError` when another one answers, or none. `dmi` has the facts of which each identifies the cloud: the name
    of a file below /sys and what it begins with.
    """

    method: str
    title: str
    address: Callable[[Mapping[str, str]], URL]
    prove: Callable[[MetadataService], Awaitable[dict[str, str]]]
    is_there: Callable[[MetadataService], Awaitable[object]]
    dmi: tuple[tuple[str, str], ...]


CLOUDS = (
    Cloud(
        aws.NAME,
        "AWS",
        aws.address,
        aws.prove,
        aws.session_token,
        (
            ("class/dmi/id/sys_vendor", "Amazon EC2"),
            ("class/dmi/id/board_vendor", "Amazon EC2"),
            ("class/dmi/id/bios_vendor", "Amazon EC2"),
            ("hypervisor/uuid", "ec2"),  # instances on Xen, whose DMI says only Xen
        ),
    ),
    Cloud(
        azure.NAME,
        "Azure",
        azure.address,
        azure.prove,
        azure.is_there,
        # Microsoft Corporation as the vendor would be any Hyper-V; this tag is the same in all of Azure and only there.
        (("class/dmi/id/chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),),
    ),
    Cloud(
        google.NAME,
        "Google Cloud",
        google.address,
        google.prove,
        google.is_there,
        # Google as the vendor would be any Chromebook.
        (("class/dmi/id/product_name", "Google Compute Engine"),),
    ),
)

"""Whether an answer has the keys and types of a recorded one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any


def differences(
    ours: Any, theirs: Any, *, absent: Collection[str], added: Collection[str], where: str = "$"
) -> Iterator[str]:
    """A line for each; keys in `absent` may be missing, and those in `added` may be there in addition."""
    deeper = partial(differences, absent=absent, added=added)
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if where.endswith("environment_variables"):
            return
        if where.endswith("latency"):  # by the name of the region, which is another one
            ours, theirs = dict(enumerate(ours.values())), dict(enumerate(theirs.values()))
        for key in theirs.keys() - ours.keys() - set(absent):
            yield f"{where} has no {key}"
        for key in ours.keys() - theirs.keys() - set(added):
            yield f"{where} has also {key}"
        for key in theirs.keys() & ours.keys():
            yield from deeper(ours[key], theirs[key], where=f"{where}.{key}")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if bool(ours) != bool(theirs):
            yield f"{where} has {len(ours)} items for {len(theirs)}"
        elif ours:
            # One of ours must be like the recorded one; others may have less, such as an app without a health check.
            pairs = [deeper(one, theirs[0], where=f"{where}[]") for one in ours]
            yield from min((list(pair) for pair in pairs), key=len)
    elif type(ours) is not type(theirs):
        yield f"{where} is a {type(ours).__name__} for a {type(theirs).__name__}"

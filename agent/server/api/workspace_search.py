"""What clients write to find workspaces: `owner:me name:dev status:running` and bare words. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.server.errors import Validation, invalid

_TERM = re.compile(r'(?:(?P<key>[A-Za-z_-]+):)?(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+))')
KEYS = frozenset({"owner", "name", "status"})


@dataclass(frozen=True, slots=True)
class Search:
    """Empty values match everything. `owner` and `status` must be equal, `name` must be contained."""

    owner: str = ""
    name: str = ""
    status: str = ""

    def matches(self, owner: str, name: str, status: str) -> bool:
        return self.owner in ("", owner) and self.name in name and self.status in ("", status)


def parse(text: str, me: str) -> Search:
    """`me` is the caller's name. A bare word is a name, or `owner/name`. Raises `ApiError` 400."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        term = _TERM.match(text, at)
        if term is None:
            raise invalid(Validation("q", f"cannot be understood from {text[at:]!r} on"))
        at = term.end()
        key = (term["key"] or "").lower()
        value = (term["plain"] if term["quoted"] is None else term["quoted"]).lower()
        if not key:
            if ":" in value:
                raise invalid(Validation("q", f"{value!r} is neither a name nor KEY:VALUE"))
            owner, slash, name = value.partition("/")
            terms = {"owner": owner, "name": name} if slash else {"name": value}
        elif key in KEYS:
            terms = {key: value}
        else:
            raise invalid(Validation("q", f'"{key}" is not a valid query param'))
        for name, wanted in terms.items():
            if name in found:
                raise invalid(Validation("q", f'"{name}" is given twice'))
            found[name] = wanted
    if found.get("owner") == "me":
        found["owner"] = me
    return Search(**found)

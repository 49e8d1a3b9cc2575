"""Commands give way to the agent: they get less of the processor, and the kernel ends them first when memory runs out
(daemon.md §1.7).

What a command is to have travels as two variables of its environment, to whoever starts it: he takes them out again
with `split` and applies them. The keepers of scripts and terminals, which import nothing, do the same in their own way.
Nothing is wrapped: a process between the agent and the command would cost 10 ms and be seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OOM_VARIABLE: Final = "CODER_PROC_OOM_SCORE"
NICE_VARIABLE: Final = "CODER_PROC_NICE_SCORE"
SWITCH: Final = "CODER_PROC_PRIO_MGMT"
VARIABLES: Final = (SWITCH, OOM_VARIABLE, NICE_VARIABLE)

NICER: Final = 5
NICEST: Final = 19


@dataclass(frozen=True, slots=True)
class Priority:
    """Absolute values; None leaves what is inherited."""

    oom: int | None
    nice: int | None

    def apply(self, pid: int) -> None:
        """To a process that has just begun. What the system does not permit is left as it is."""
        if self.oom is not None:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/oom_score_adj").write_text(str(self.oom))
        if self.nice is not None:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, self.nice)


def variables(
    environment: Mapping[str, str], *, by_default: bool, own_oom: int | None, own_nice: int
) -> dict[str, str]:
    """What commands are to have, for their environment: nothing unless the owner asked, or it is so by default.

    `environment` is the agent's: explicit values count where they are numbers in range. `own_oom` is None where the
    system has no such score.
    """
    if SWITCH not in environment and not by_default:
        return {}
    result = {NICE_VARIABLE: str(_number(environment.get(NICE_VARIABLE), -20, 19, min(own_nice + NICER, NICEST)))}
    if own_oom is not None:
        result[OOM_VARIABLE] = str(_number(environment.get(OOM_VARIABLE), -1000, 1000, default_oom(own_oom)))
    return result


def default_oom(own: int) -> int:
    """The score of commands of an agent that has `own`."""
    if own < 0:
        return 0
    return 1000 if own >= 998 else 998


def own_oom_score() -> int | None:
    """The score of this process; None where there is none. Reads a file."""
    try:
        return int(Path("/proc/self/oom_score_adj").read_text())
    except (OSError, ValueError):
        return None


def split(environment: Mapping[str, str]) -> tuple[dict[str, str], Priority]:
    """The environment without the variables, and what they say."""
    rest = {name: value for name, value in environment.items() if name not in VARIABLES}
    oom = _number(environment.get(OOM_VARIABLE), -1000, 1000, None)
    return rest, Priority(oom, _number(environment.get(NICE_VARIABLE), -20, 19, None))


def _number(text: str | None, low: int, high: int, default: int | None) -> int | None:
    try:
        number = int(text) if text is not None else None
    except ValueError:
        return default
    return number if number is not None and low <= number <= high else default

"""Build, run, time-box, schedule and adopt scripts."""

from agent.scripts.ports import Capture, Captures, CommandContext, ScriptCompleted
from agent.scripts.run import OnResult, PhaseResult, Stage
from agent.scripts.runner import Adopted, ScriptRunner
from agent.scripts.supervise import Limits

__all__ = [
    "Adopted",
    "Capture",
    "Captures",
    "CommandContext",
    "Limits",
    "OnResult",
    "PhaseResult",
    "ScriptCompleted",
    "ScriptRunner",
    "Stage",
]

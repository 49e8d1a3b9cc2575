"""Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.workspace_api.views import Metric

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def render(metrics: Iterable[Metric]) -> str:
    """The metrics in the given order, one sample a line."""
    lines = []
    for metric in metrics:
        lines.append(f"# TYPE {metric.name} {metric.kind}\n")
        for labels, value in metric.samples:
            inner = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
            number = int(value) if float(value).is_integer() else value
            lines.append(f"{metric.name}{{{inner}}} {number}\n" if inner else f"{metric.name} {number}\n")
    return "".join(lines)

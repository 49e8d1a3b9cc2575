"""What is counted, as values, and Prometheus' text format of it (version 0.0.4).

There is no registry of objects: every room counts in plain attributes, and whoever asks gets a list made at that
moment. prometheus-client would cost every agent 1.5 MB and 13 ms of its start for what a few lines do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of the Prometheus text format; `kind` is `counter` or `gauge`, samples are by their labels."""

    name: str
    kind: str
    samples: Sequence[tuple[Mapping[str, str], float]]
    help: str = ""


def counter(name: str, value: float, help: str = "") -> Metric:
    """A counter without labels."""
    return Metric(name, "counter", (({}, value),), help)


def gauge(name: str, value: float, help: str = "") -> Metric:
    """A gauge without labels."""
    return Metric(name, "gauge", (({}, value),), help)


def by_label(name: str, kind: str, label: str, values: Mapping[str, float], help: str = "") -> Metric:
    """A metric with one label, a sample for each of its values."""
    return Metric(name, kind, [({label: text}, value) for text, value in values.items()], help)


def render(metrics: Iterable[Metric]) -> str:
    """The metrics in the given order, one sample a line."""
    lines = []
    for metric in metrics:
        if metric.help:
            lines.append(f"# HELP {metric.name} {metric.help.translate(_HELP_ESCAPES)}\n")
        lines.append(f"# TYPE {metric.name} {metric.kind}\n")
        for labels, value in metric.samples:
            inner = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
            number = int(value) if float(value).is_integer() else value
            lines.append(f"{metric.name}{{{inner}}} {number}\n" if inner else f"{metric.name} {number}\n")
    return "".join(lines)

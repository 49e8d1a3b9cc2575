"""What keeps an agent on this machine from working: small checks, each with what it saw and what to do; and the bundle
of all that for somebody who helps."""

from agent.doctor.finding import Finding, Outcome

__all__ = ["Finding", "Outcome"]

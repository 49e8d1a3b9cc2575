"""What the agent tells the server about itself: lifecycle, script timings; and the banners it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp

from agent.api import methods
from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock, wait_for
from agent.daemon.journal import Journal
from agent.daemon.lifecycle import State, Transition
from agent.daemon.logfile import get_logger
from agent.rpc import RpcError, UnsupportedError

CALL_LIMIT = 30.0
"""Seconds for one report."""
BARRIER_LIMIT = 0.5
"""Seconds that a state waits for the log lines which were printed before it."""
BANNER_INTERVAL = 120.0
"""Seconds between two looks at the banners (agent-api.md §11.10)."""


class LifecycleReporter:
    """Enters lifecycle states, and sends those that the server has not acknowledged, in order (daemon.md §3.2).

    `barrier` waits until the log lines so far are at the server: who sees `ready` shall see what was printed before.
    """

    def __init__(self, journal: Journal, clock: Clock, barrier: Callable[[], Awaitable[None]]) -> None:
        self._journal = journal
        self._clock = clock
        self._barrier = barrier

    @property
    def state(self) -> State:
        """The current state."""
        return self._journal.state.lifecycle.state

    def enter(self, state: State) -> None:
        """Enter `state` now; a step back is dropped with a warning."""
        log = get_logger("agent.lifecycle")
        if self._journal.enter(state, self._clock.wall()):
            log.info("lifecycle", state=state.name.lower())
        else:
            log.warning("state dropped: it would be a step back", state=state.name.lower(), now=self.state.name.lower())

    def reintroduce(self) -> None:
        """The manifest made this process another agent, which the server has heard nothing of (quirk Q7)."""
        self._journal.reintroduce(self._clock.wall())

    async def acknowledged(self) -> None:
        """Wait until the server has acknowledged everything."""
        while self._journal.state.lifecycle.pending:
            await self._journal.changed()

    async def run(self, api: AgentApi) -> None:
        """The routine of one connection: what is pending goes out at once, then each state as it comes."""
        while True:
            while pending := self._journal.state.lifecycle.pending:
                await self._send(api, pending[0])
            await self._journal.changed()

    async def _send(self, api: AgentApi, transition: Transition) -> None:
        if transition.state not in (State.STARTING, State.SHUTTING_DOWN):
            try:
                await wait_for(self._clock, self._barrier(), BARRIER_LIMIT)
            except TimeoutError:
                get_logger("agent.lifecycle").debug("log lines are still on their way", state=transition.state.name)
        report = pb.Lifecycle(
            state=pb.Lifecycle.State.ValueType(transition.state),
            changed_at=Timestamp(
                seconds=transition.changed_at // 1_000_000, nanos=transition.changed_at % 1_000_000 * 1000
            ),
        )
        await api.call(methods.UPDATE_LIFECYCLE, pb.UpdateLifecycleRequest(lifecycle=report), timeout=CALL_LIMIT)
        self._journal.acknowledge(transition)


class TimingReporter:
    """Sends how long scripts ran, on whatever connection there is (daemon.md §4.10)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def add(self, timing: pb.Timing) -> None:
        """Queue one timing. Beyond `journal.MAX_TIMINGS` the oldest ones are dropped."""
        self._journal.timing(timing.SerializeToString())

    async def sent(self) -> None:
        """Wait until nothing is queued."""
        while self._journal.state.timings:
            await self._journal.changed()

    async def run(self, api: AgentApi) -> None:
        """The routine of one connection. What the server refuses is dropped: repeating it would not help."""
        log = get_logger("agent.timings")
        while True:
            while self._journal.state.timings:
                oldest = self._journal.state.timings[0]
                request = pb.WorkspaceAgentScriptCompletedRequest(timing=pb.Timing.FromString(oldest))
                try:
                    await api.call(methods.SCRIPT_COMPLETED, request, timeout=CALL_LIMIT)
                except UnsupportedError:
                    log.debug("script timing dropped: the server does not take any")
                except RpcError as error:
                    log.warning("script timing dropped: the server refused it", error=error)
                if self._journal.state.timings and self._journal.state.timings[0] is oldest:
                    self._journal.timing_reported()
            await self._journal.changed()


class Banners:
    """The announcements that terminals show at login."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.current: tuple[pb.BannerConfig, ...] = ()
        """The latest list, without banners that are switched off."""

    async def run(self, api: AgentApi) -> None:
        """The routine of one connection: look at once, then every two minutes."""
        while True:
            self.current = tuple(banner for banner in await self._fetch(api) if banner.enabled)
            await self._clock.sleep(BANNER_INTERVAL)

    async def _fetch(self, api: AgentApi) -> list[pb.BannerConfig]:
        try:
            request = pb.GetAnnouncementBannersRequest()
            answer = await api.call(methods.GET_ANNOUNCEMENT_BANNERS, request, timeout=CALL_LIMIT)
        except UnsupportedError:
            old = await api.call(methods.GET_SERVICE_BANNER, pb.GetServiceBannerRequest(), timeout=CALL_LIMIT)
            return [pb.BannerConfig(enabled=old.enabled, message=old.message, background_color=old.background_color)]
        return list(answer.announcement_banners)

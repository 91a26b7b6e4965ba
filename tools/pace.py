"""How many tool calls of one process are on their way as tasks at once.

Ray starts a process for each task beyond those that are idle: two hundred quick calls at once would start
scores of processes, and take three times as long as through a few. So further calls wait, as long as calls
before them end; where none has ended for a moment, because they take their time, twice as many are let go.

Layer: tools; no Ray.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

STALLED_AFTER_S = 0.05
"""When no call has ended for so long, more are let go."""


class Pace:
    """`slots` calls at once, and more while they take their time. One event loop uses it."""

    def __init__(self, slots: int, stalled_after_s: float = STALLED_AFTER_S) -> None:
        self._least = self._slots = slots
        self._stalled_after_s = stalled_after_s
        self._under_way = 0
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def under_way(self) -> int:
        """How many are on their way."""
        return self._under_way

    async def enter(self) -> None:
        """Wait until a call may be sent; `leave` has to be called after it."""
        if not self._line and self._under_way < self._slots:
            self._under_way += 1
            return
        let = asyncio.get_running_loop().create_future()
        self._line[let] = None
        self._watch()
        try:
            await let
        except asyncio.CancelledError:
            if self._line.pop(let, 0) == 0:  # it had been let go already
                self.leave()
            raise

    def leave(self) -> None:
        """A call has ended."""
        self._under_way -= 1
        self._slots = max(self._least, self._slots - 1) if self._under_way else self._least
        self._serve()
        self._watch()

    def _serve(self) -> None:
        while self._line and self._under_way < self._slots:
            let, _ = self._line.popitem(last=False)
            if not let.done():
                self._under_way += 1
                let.set_result(None)

    def _watch(self) -> None:
        """Look again when nothing has ended for a while."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._stalled_after_s, self._stalled)

    def _stalled(self) -> None:
        self._timer = None
        self._slots = 2 * max(self._slots, self._under_way)
        self._serve()
        self._watch()

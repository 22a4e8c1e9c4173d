"""What `asr live` shows in a terminal."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from asr.audio.microphone import Source
from asr.audio.recording import clock
from asr.session import Session
from asr.stream import Event, Final, Partial

_REDRAW_S = 0.1
_METER_DB, _METER_WIDTH = 60.0, 24  # what the level meter spans


class Display:
    """Finals scroll up; below them stand the text so far, of which the dim part may change, and how the sound is."""

    def __init__(self, console: Console, source: Source, session: Session) -> None:
        self._source, self._session = source, session
        self._partial = Partial("", "", 0.0)
        self._drawn = 0.0
        self._bar = "━" if console.encoding.startswith("utf") else "="
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """A final stays, a partial until the next event."""
        self._partial = event if isinstance(event, Partial) else Partial("", "", 0.0)
        self._drawn = 0.0
        if isinstance(event, Final):
            self._live.update(self._lower_part())
            began = event.words[0].start_s if event.words else event.start_s
            self._live.console.print(Text.assemble((f"{clock(began)}  ", "dim"), event.text))

    def draw(self) -> None:
        """The lower part anew, if it is time to."""
        if (now := time.monotonic()) - self._drawn >= _REDRAW_S:
            self._drawn = now
            self._live.update(self._lower_part(), refresh=True)

    def _lower_part(self) -> Group:
        session = self._session
        lag_s = self._source.time_s - session.time_s
        lit = round(np.clip(session.level_db / _METER_DB + 1, 0, 1) * _METER_WIDTH)
        status = Text.assemble(
            (f"{clock(self._source.time_s)}  ", "dim"),
            (self._bar * lit, "red" if session.level_db > -3 else "green"),
            (self._bar * (_METER_WIDTH - lit), "dim"),
            f" {session.level_db:4.0f} dB",
            (f"   lag {lag_s:.1f} s", "yellow" if lag_s > 2 else "dim"),
            (f"   lost {session.lost_s:.1f} s" if session.lost_s else "", "red"),
            (f"   overflows {session.overflows}" if session.overflows else "", "red"),
            no_wrap=True,
            overflow="crop",
        )
        so_far = Text.assemble(self._partial.stable, " " * bool(self._partial.stable), (self._partial.unstable, "dim"))
        return Group(so_far, status)

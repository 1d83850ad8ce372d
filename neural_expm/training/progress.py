"""A progress bar on one line of the terminal, and the same facts as JSON lines in a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def duration(seconds: float) -> str:
    """Return 75 as '1:15' and 3675 as '1:01:15'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Bar with loss, error quantiles and time left, redrawn in place on a terminal."""

    def __init__(self, total: int, start: int = 0, log: Path | None = None, stream: TextIO | None = None):
        self.total, self.start, self.log = total, start, log
        self.stream = stream if stream is not None else sys.stderr
        self.began = time.monotonic()
        self.drawn = 0.0

    def line(self, step: int, facts: dict[str, Any]) -> str:
        done = step / self.total
        elapsed = time.monotonic() - self.began
        left = elapsed / max(1, step - self.start) * (self.total - step)
        bar = "█" * int(20 * done) + "·" * (20 - int(20 * done))
        shown = "  ".join(f"{k} {v:.3%}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        return f"{bar} {step}/{self.total}  {shown}  {duration(left)} left"

    def update(self, step: int, **facts: Any) -> None:
        """Redraw the bar, at most five times a second."""
        now = time.monotonic()
        if self.stream.isatty() and (now - self.drawn > 0.2 or step == self.total):
            self.drawn = now
            self.stream.write("\r\x1b[K" + self.line(step, facts))
            self.stream.flush()

    def record(self, step: int, **facts: Any) -> None:
        """Append one JSON object to the log, and print the line."""
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a") as stream:
                stream.write(json.dumps({"step": step, **facts}) + "\n")
        shown = {k: v for k, v in facts.items() if k != "seconds"}
        self.stream.write(("\r\x1b[K" if self.stream.isatty() else "") + self.line(step, shown) + "\n")
        self.stream.flush()

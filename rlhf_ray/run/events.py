"""RUN/log.jsonl: the events of a run, one JSON object a line, never a prompt or a completion."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
log = logging.getLogger(__name__)


def notice(message: str) -> None:
    """Logs a sentence for the user: into the event log of the open run and, under the command line, on the terminal."""
    log.info(message, extra={"terminal": True})


class PackageHandler(logging.Handler):
    """A handler of the package's log records from INFO on, from when it is made until :meth:`close`.

    The package's logger lets INFO records through while at least one of these handlers is open.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        logger = logging.getLogger(PACKAGE)
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def close(self) -> None:
        """Ends the handling. May be called again."""
        logger = logging.getLogger(PACKAGE)
        logger.removeHandler(self)
        if not any(isinstance(handler, PackageHandler) for handler in logger.handlers):
            logger.setLevel(logging.NOTSET)
        super().close()


class TerminalHandler(PackageHandler):
    """Prints the messages of :func:`notice` to stdout. The command line opens one for the time of a command."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message, flushed, if the record is marked for the terminal."""
        if getattr(record, "terminal", False):
            print(record.getMessage(), flush=True)


class EventLog(PackageHandler):
    """Writes the package's log records to a file while it is open, each line with the run's id, the stage and the step.

    ``stage`` is what the run is doing ("start" at first), ``step`` the number of the first step that is not finished.
    """

    def __init__(self, file: Path, run_id: str, job: str) -> None:
        self.file = file.open("a")
        self.origin = {"run_id": run_id, "job": job}
        self.stage, self.step = "start", 0
        super().__init__()

    def at(self, *, stage: str | None = None, step: int | None = None) -> None:
        """Sets the stage, the step, or both, for the lines that follow."""
        self.stage = self.stage if stage is None else stage
        self.step = self.step if step is None else step

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line. Of an exception it has no text, which may quote what a user's function was given."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self.origin,
            "stage": self.stage,
            "step": self.step,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def finish_step(self, step: int, seconds: float) -> None:
        """Writes a line for a finished step; its metrics are in metrics.jsonl."""
        self.at(step=step)
        log.info("step finished", extra={"fields": {"seconds": round(seconds, 3)}})
        self.at(step=step + 1)

    def write_failure(self, error: BaseException) -> None:
        """Writes a line for the error that ended the run: its kind and place. The manifest has its text."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        message = f"failed: {type(error).__name__} at {place}"
        self.emit(logging.LogRecord(PACKAGE, logging.ERROR, place, 0, message, None, None))

    def close(self) -> None:
        """Ends the log and closes the file. May be called again."""
        super().close()
        self.file.close()

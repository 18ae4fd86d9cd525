"""RUN/log.jsonl: what a run said, one JSON object a line. It never holds a prompt or a completion."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
log = logging.getLogger(__name__)


def say(message: str) -> None:
    """Shows a sentence on the terminal, and has it in the log of the run that is open."""
    print(message, flush=True)
    log.info(message)


class Journal(logging.Handler):
    """Writes what the package logs while it is open, each line with the run's id, the stage and the step; a sink of metrics as well.

    ``stage`` and ``step`` are what the run is doing: ``step`` is the one that is not finished yet.
    """

    def __init__(self, file: Path, run_id: str, job: str) -> None:
        super().__init__(logging.INFO)
        self.file = file.open("a")
        self.about = {"run_id": run_id, "job": job}
        self.stage, self.step = "start", 0
        logger = logging.getLogger(PACKAGE)
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """One line. Of an exception only its kind and place: its text may quote what a user's function was given."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname, **self.about, "stage": self.stage, "step": self.step,
            "message": record.getMessage(), **getattr(record, "more", {}),
        }  # fmt: skip
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line for a finished step (its metrics are in metrics.jsonl)."""
        self.step = step
        log.info("step finished", extra={"more": {"seconds": round(metrics["time/step"], 3)}})
        self.step = step + 1

    def failed(self, error: BaseException) -> None:
        """A line for what ended the run: kind and place; the manifest has the text."""
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        message = f"failed: {type(error).__name__} at {where}"
        self.emit(
            logging.LogRecord(PACKAGE, logging.ERROR, where, 0, message, None, None)
        )  # the terminal has its own line

    def close(self) -> None:
        """Nothing: as a sink it is opened and closed several times in a run."""

    def end(self) -> None:
        """Ends the log; with the last that is open, sentences are for the terminal alone again."""
        logger = logging.getLogger(PACKAGE)
        logger.removeHandler(self)
        if not any(isinstance(handler, Journal) for handler in logger.handlers):
            logger.setLevel(logging.NOTSET)
        self.file.close()

"""Logs as lines of JSON on standard error."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from typing import Any


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = _head(record.created, record.levelname, record.name) | {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def access_line(seconds: float, fields: dict[str, Any]) -> str:
    """Return the line of a request: not by `logging`, whose records take longer than the rest of its bookkeeping."""
    return json.dumps(_head(seconds, "info", "vqdistill.access") | fields) + "\n"


def _head(seconds: float, level: str, logger: str) -> dict[str, Any]:
    return {
        "time": datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds"),
        "level": level.lower(),
        "logger": logger,
        "process": os.getpid(),
    }


def log_config() -> dict[str, Any]:
    """Return the configuration of `logging.config.dictConfig` that every process of a server takes."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.JsonFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": "INFO", "propagate": False} for name in ("uvicorn", "vqdistill")
        },
    }

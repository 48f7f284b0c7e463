"""What the web server says of requests that are no HTTP, and of clients that do not wait for their answer. By itself it
logs an error and a trace of each, so that any stranger could fill the log."""

from __future__ import annotations

import logging
from http import HTTPStatus

from aiohttp.http_exceptions import HttpProcessingError

from hivenode.logs import ROOT, get_logger

log = get_logger("http")


class _Sparing(logging.Filter):
    """Lets through what is a defect; of bad requests says only how many there were, at 1, 2, 4, 8 and so on."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):
            return False  # it went before it was answered
        if not isinstance(error, HttpProcessingError) or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return True
        self._count += 1
        if self._count & (self._count - 1) == 0:
            source = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
            log.warning("a request that is no HTTP", address=source, so_far=self._count, reason=error.message[:200])
        return False


def sparing_logger(server: str) -> logging.Logger:
    """For `web.AppRunner(logger=...)`.

    Args:
        server: which one, for the logger's name.
    """
    logger = logging.getLogger(f"{ROOT}.http.{server}")
    if not logger.filters:
        logger.addFilter(_Sparing())
    return logger

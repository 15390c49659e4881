"""Failures of a server by what they mean: for one attempt, one request, or the whole run."""

import re

_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|too (long|large)|longer than|max_model_len|maximum.{0,30}tokens|exceed", re.I
)


class PassingError(Exception):
    """An attempt that failed, as the next one need not; `wait_s` if the server asks to wait."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait_s = reason, wait_s


class RefusedError(Exception):
    """A request that the server refuses, and would again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message = status, message

    @property
    def too_long(self) -> bool:
        return self.status == 413 or _TOO_LONG.search(self.message) is not None

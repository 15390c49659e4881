"""One call of the Hub's library, repeated while the failure may pass; every other failure is explained once."""

import errno
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import LocalTokenNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from eaglepipe.errors import EaglepipeError, ResourceError, UnreachableError, first_line
from eaglepipe.hub.attempts import Attempts, Refusal, say
from eaglepipe.hub.client import PASSING_ERRORS, counted_attempts, httpx

T = TypeVar("T")

_EXPLAINED = (
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository as messages name it, and the error that is raised if it is not to be had."""

    name: str  # "target 'org/model'"
    revision: str | None = None
    error: type[EaglepipeError] = EaglepipeError


def from_hub(
    repository: Repository,
    call: Callable[[], T],
    *,
    local: Callable[[], T | None] = lambda: None,
    also: tuple[type[Exception], ...] = (),
) -> T:
    """Return the result of a call of huggingface_hub or datasets.

    Args:
        local: the same from the files on this machine, if the Hub cannot be reached.
        also: errors of the call that are explained like its other ones.

    Raises:
        repository.error: the Hub refuses, has no such thing, or may not be asked.
        UnreachableError: it does not answer, or not completely, after all attempts.
        ResourceError: the disk is full.
    """
    attempts = Attempts(repository.name)
    while True:
        begun = time.monotonic()
        try:
            with _quiet(), counted_attempts(attempts):
                result = call()
        except UnreachableError as error:
            return _or_local(error, local)
        except (*_EXPLAINED, *also) as error:
            if attempts.given_up is not None:
                return _or_local(attempts.given_up, local)
            reason = _passing(error)
            if reason is None:
                raise _explained(error, attempts, repository) from None
            try:
                attempts.failed("answer", reason, begun=begun)
            except UnreachableError as unreachable:
                return _or_local(unreachable, local)
        else:
            if attempts.given_up is not None:
                say(f"{attempts.given_up}; going on with the copy on this machine")
            return result


def _or_local(error: UnreachableError, local: Callable[[], T | None]) -> T:
    result = local()
    if result is None:
        raise error from None
    say(f"{error}; going on with the copy on this machine")
    return result


def _passing(error: Exception) -> str | None:
    """Return why a call failed, if another one may succeed."""
    if constants.is_offline_mode() or "OfflineModeIsEnabled" in str(error):
        return None
    if isinstance(error, json.JSONDecodeError):
        return "not the JSON that the Hub answers with"
    if "Consistency check failed" in str(error):
        return "a file of the wrong size"
    if isinstance(error, PASSING_ERRORS) or (type(error) in (ConnectionError, TimeoutError, ConnectionResetError)):
        return first_line(error)
    return None


def _explained(error: Exception, attempts: Attempts, repository: Repository) -> EaglepipeError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{repository.name}: the disk of {constants.HF_HUB_CACHE} is full")
    if constants.is_offline_mode():
        return repository.error(
            f"{repository.name}: not on this machine, and the Hub is not asked, as HF_HUB_OFFLINE is set; unset it, or "
            f"download it first ({constants.HF_HUB_CACHE})"
        )
    if isinstance(error, LocalTokenNotFoundError):
        return repository.error(f"{repository.name}: the Hub asks who you are: {_LOG_IN}")
    if isinstance(error, RemoteEntryNotFoundError):
        return repository.error(f"{repository.name}: the Hub has no {attempts.refusals[-1].file} of it")
    refusals = sorted(attempts.refusals, key=_weight, reverse=True)
    reason = _refused(refusals[0], repository) if refusals else None
    return repository.error(f"{repository.name}: {reason or _without_token(first_line(error))}")


def _weight(refusal: Refusal) -> int:
    """Order answers by how much they explain: absent files are usual, since the libraries ask for optional ones."""
    return 2 if refusal.status in (401, 403) else 0 if refusal.code == "EntryNotFound" else 1


def _refused(refusal: Refusal, repository: Repository) -> str | None:
    if refusal.code == "EntryNotFound":
        return None
    revision = f" with revision {repository.revision!r}" if repository.revision else ""
    reasons = {
        "GatedRepo": f"gated; ask for access on its page, then {_LOG_IN}",
        "RevisionNotFound": f"no revision {repository.revision!r} of it",
        401: f"private or gated, or none of this name; {_LOG_IN}",
        403: f"not for your account or token; {_LOG_IN} as one that may",
        404: f"none of this name{revision} (if it is private, {_LOG_IN})",
    }
    reason = reasons.get(refusal.code) or reasons.get(refusal.status) or f"no answer to the request for {refusal.file}"
    said = f" ({_without_token(refusal.message.strip())})" if refusal.message.strip() else ""
    return f"the Hub answers {refusal.status}: {reason}{said}"


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "***") if token else text


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of huggingface_hub, whose lines would repeat ours, and its bars if nobody watches them."""
    logger = logging.getLogger("huggingface_hub")
    level, hide = logger.level, not sys.stderr.isatty() and not are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hide:
            enable_progress_bars()

"""Calls of fsspec's file systems: opened when first used, repeated while a failure may pass, explained if it will not.

The libraries' own repetitions are off, so that every wait is counted, limited and printed in one place.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from eaglepipe.errors import CacheError, ConfigError, EaglepipeError, ResourceError, first_line
from eaglepipe.hub.attempts import Attempts, positive_seconds
from eaglepipe.stores.urls import StoreUrl, credentials_advice, redacted

T = TypeVar("T")

PATIENCE_VARIABLE = "EAGLEPIPE_STORE_PATIENCE_S"
_DEFAULT_PATIENCE_S = 70.0
_PACKAGES = {
    "s3": ("s3fs", "eaglepipe[s3]"),
    "gs": ("gcsfs", "eaglepipe[gcs]"),
    "hf": ("huggingface_hub", "huggingface_hub"),
}
_PASSING_STATUS = {408, 409, 425, 429}
_PASSING_CODES = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
    "NoSuchUpload",
}
_LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS}
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN")


class StoreCalls:
    """Calls of one store's file system, from any thread and from forked processes."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._filesystem: Any = None
        self._process = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_url"])  # type: ignore[misc]

    @property
    def filesystem(self) -> Any:
        """The file system; one a process, since its threads do not survive a fork."""
        with self._lock:
            if self._filesystem is None or self._process != os.getpid():
                self._filesystem, self._process = _open(self._url), os.getpid()
            return self._filesystem

    def run(self, name: str, call: Callable[[Any], T], *, attempts: Attempts | None = None) -> T:
        """Return the result of a call about the object `name`, repeated with back-off.

        Raises:
            FileNotFoundError, FileExistsError: there is no such object, or there is one.
            CacheError: the store refuses.
            UnreachableError: it does not answer, or not completely, after all attempts.
            ResourceError, EaglepipeError: this machine failed.
        """
        attempts = attempts or self.attempts()
        while True:
            begun = time.monotonic()
            try:
                return call(self.filesystem)
            except (FileNotFoundError, FileExistsError, EaglepipeError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
                    raise ResourceError(f"{self._url}: {name}: {error.strerror or error}") from error
                reason = _shown(error)
                if _is_final(error):
                    raise CacheError(
                        f"{self._url}: the store refuses {name}: {reason}; {credentials_advice(self._url)}"
                    ) from None
                attempts.failed(name, reason, begun=begun)

    def attempts(self) -> Attempts:
        """Return a new count of attempts."""
        return Attempts(str(self._url), server="the store", patience_s=patience_seconds())


def patience_seconds() -> float:
    """Return the time that an object may take without progress, as the environment has it.

    Raises:
        EaglepipeError: the variable is no positive number.
    """
    return positive_seconds(PATIENCE_VARIABLE, _DEFAULT_PATIENCE_S)


@contextmanager
def known_bucket(url: StoreUrl) -> Iterator[None]:
    """Explain a FileNotFoundError of a write: the bucket is missing, as nothing else need be there.

    Raises:
        CacheError: there is no such bucket, or not for this user.
    """
    try:
        yield
    except FileNotFoundError:
        raise CacheError(f"{url}: no such bucket or repository, or not for this user; make it first") from None


def _open(url: StoreUrl) -> Any:
    package, extra = _PACKAGES[url.scheme]
    try:
        if url.scheme == "s3":
            return _open_s3()
        if url.scheme == "gs":
            from gcsfs import GCSFileSystem

            return GCSFileSystem(skip_instance_cache=True, use_listings_cache=False, timeout=patience_seconds() / 2)
        from huggingface_hub import HfFileSystem

        return HfFileSystem(skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(f"{url}: needs the package {package} ({error}); `pip install '{extra}'`") from None


def _open_s3() -> Any:
    from s3fs import S3FileSystem

    seconds = max(patience_seconds() / 4, 0.5)
    config = {
        "connect_timeout": min(seconds, 10.0),
        "read_timeout": seconds,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    filesystem = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=config)
    filesystem.retries = 1
    return filesystem


def _is_final(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    status, code = _answer(error)
    if code in _PASSING_CODES:
        return False
    if status is not None:
        return 400 <= status < 500 and status not in _PASSING_STATUS
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        isinstance(error, PermissionError | ValueError | TypeError | NotImplementedError)
        or names & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
        or names & {"DefaultCredentialsError", "RefreshError"}
    )


def _answer(error: BaseException) -> tuple[int | None, str]:
    """Return the status and the code of a server's answer, as far as the error or its cause has them."""
    for raised in (error, error.__cause__, error.__context__):
        response = getattr(raised, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        status = getattr(response, "status_code", None)
        if type(raised).__name__ == "HttpError":  # of gcsfs; aiohttp gives a body that was cut the code 400, too
            status = getattr(raised, "code", None)
        if isinstance(status, int):
            return status, ""
    return None, ""


def _shown(error: Exception) -> str:
    """Return the first line of an error without credentials."""
    text = first_line(error)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return redacted(text).rstrip(".")

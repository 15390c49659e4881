"""URLs of caches: `s3://`, `gs://`, `hf://` and `file://`. None ever holds a credential, so all may be printed."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote, urlsplit

from eaglepipe.errors import ConfigError

SCHEMES = ("s3", "gs", "hf")
_LOCAL = "file"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_USER = re.compile(r"(?<=://)[^/\s'\"@]*:[^\s'\"@]*@|(?<=://)[^/\s'\"@]*@")
_QUERY = re.compile(r"(://[^\s'\"?#]+)[?#][^\s'\"]*")
_ONE_SLASH = re.compile(r"(s3|gs|hf):/(?!/)", re.IGNORECASE)  # as a path's tidying leaves it


@dataclass(frozen=True, kw_only=True)
class StoreUrl:
    """A folder in an object store."""

    scheme: str
    path: str  # bucket or repository, then the key, without a slash at either end

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def joined(self, *names: str) -> "StoreUrl":
        """Return the URL of something below."""
        return StoreUrl(scheme=self.scheme, path="/".join((self.path, *names)))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def is_url(text: str) -> bool:
    """Return whether a text is meant as a URL."""
    return _URL.match(text) is not None or _ONE_SLASH.match(text) is not None


def redacted(text: str) -> str:
    """Return a text whose URLs show neither user, password nor query."""
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))


def parse_location(text: str) -> StoreUrl | Path:
    """Return the local path or the store that a text names.

    Raises:
        ConfigError: another scheme; a URL with credentials, a query or a strange path; a file on another host.
    """
    match = _URL.match(text)
    if match is None and (short := _ONE_SLASH.match(text)) is not None:
        raise ConfigError(f"{redacted(text)}: one slash is missing; expected such as {_EXAMPLES[short[1].lower()]}")
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == _LOCAL:
        return _local_path(text)
    if scheme not in SCHEMES:
        close = get_close_matches(scheme, (*SCHEMES, _LOCAL), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}://?" if close else ""
        known = ", ".join(f"{name}://" for name in (*SCHEMES, _LOCAL))
        raise ConfigError(f"{redacted(text)}: {scheme}:// is none of {known}{hint}")
    host = rest.partition("/")[0]
    if "@" in host:
        raise ConfigError(f"{redacted(text)}: credentials do not belong in a URL; {_CREDENTIALS[scheme]}")
    if "?" in rest or "#" in rest:
        raise ConfigError(f"{redacted(text)}: the URL of a cache has no query; name its folder alone")
    parts = rest.rstrip("/").split("/")
    if not all(parts) or any(part in (".", "..") or not part.isprintable() or "\\" in part for part in parts):
        raise ConfigError(f"{text}: not the URL of a folder; expected such as {_EXAMPLES[scheme]}")
    if scheme == "hf" and len(parts) < _least_parts(parts):
        raise ConfigError(f"{text}: names no repository; expected such as {_EXAMPLES[scheme]}")
    return StoreUrl(scheme=scheme, path="/".join(parts))


_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or log in with `gcloud auth application-default login`",
    "hf": "set HF_TOKEN, or log in with `hf auth login`",
}
_EXAMPLES = {"s3": "s3://bucket/caches", "gs": "gs://bucket/caches", "hf": "hf://datasets/user/repository/caches"}


def credentials_advice(url: StoreUrl) -> str:
    """Return how a store learns who the user is."""
    return _CREDENTIALS[url.scheme]


def _least_parts(parts: list[str]) -> int:
    return 3 if parts[0] in ("datasets", "spaces", "buckets") else 2


def _local_path(text: str) -> Path:
    split = urlsplit(text)
    if split.netloc not in ("", "localhost"):
        raise ConfigError(f"{redacted(text)}: a file on another host; expected file:///folder")
    if split.query or split.fragment or not split.path.startswith("/"):
        raise ConfigError(f"{redacted(text)}: not the URL of a folder; expected such as file:///data/caches")
    return Path(unquote(split.path))

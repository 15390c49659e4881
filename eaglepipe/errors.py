"""Every error a user can cause or meet, each with the exit code the command line ends with.

A message says what happened, where, and what to do. Programmer mistakes are asserts, not these.
"""

import re

EXIT_BUG = 1
EXIT_USER = 2
EXIT_CORRUPT = 3
EXIT_RESOURCES = 4
EXIT_TRY_AGAIN = 6
EXIT_STOPPED = 75


class EaglepipeError(Exception):
    """Base of all expected errors: a mistake in a recipe, a file or an argument."""

    exit_code: int = EXIT_USER


class ConfigError(EaglepipeError):
    """A recipe or an override that does not describe a run."""


class DataError(EaglepipeError):
    """Conversations that are missing, malformed or all dropped."""


class TemplateError(DataError):
    """A chat template from which no trustworthy assistant mask can be made."""


class VocabError(EaglepipeError, ValueError):
    """A draft vocabulary that does not fit the target's; also a ValueError, for callers of the modules."""


class TargetError(EaglepipeError):
    """A target model that cannot be loaded or captured from as asked."""


class DraftError(EaglepipeError, ValueError):
    """A draft model or objective that cannot be built from what is given; also a ValueError, as `VocabError`."""


class CacheError(EaglepipeError):
    """A cache that is missing, incomplete, of another plan or of another schema version."""


class CorruptError(EaglepipeError):
    """A cache or a checkpoint whose bytes are not what was published."""

    exit_code = EXIT_CORRUPT


class ResourceError(EaglepipeError):
    """Not enough disk or memory."""

    exit_code = EXIT_RESOURCES


class LostRankError(ResourceError):
    """Another process of the same run has ended, mostly because memory ran out there."""


class UnreachableError(EaglepipeError):
    """A server that does not answer, or not completely, after several attempts; the same command may work later."""

    exit_code = EXIT_TRY_AGAIN


class StoppedError(EaglepipeError):
    """Stopped by a signal after everything was saved; running the command again continues."""

    exit_code = EXIT_STOPPED


def printable(text: str) -> str:
    """The text with control characters, terminal escapes among them, written out; line feeds stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str) -> str:
    """The text with the middle of very long words, such as paths, and of very long lines left out."""
    text = re.sub(r"\S{400,}", lambda word: f"{word[0][:200]}…{word[0][-100:]}", text)
    return re.sub(r".{2000,}", lambda line: f"{line[0][:1000]} … {line[0][-200:]}", text)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""A task as a child process that writes into its log and ends with the process that started it."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from eaglepipe.errors import ConfigError
from eaglepipe.signals import ENDS_WITH_PARENT


def start_child(
    command: Sequence[str], log: Path, *, folder: str, variables: Mapping[str, str], title: str
) -> "subprocess.Popen[bytes]":
    """Start a command whose output is added to a log, behind a line that names the attempt.

    Raises:
        ConfigError: there is no such command.
    """
    with log.open("ab") as stream:
        stream.write(f"--- {title} on {platform.node()}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        stream.flush()
        try:
            return subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, ENDS_WITH_PARENT: "1", **variables},
                start_new_session=True,  # so that Ctrl-C comes once, from the process that started it
            )
        except OSError as error:
            raise ConfigError(f"{command[0]}: cannot be started ({error.strerror})") from None

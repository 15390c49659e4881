"""Regular files inside a folder: links that lead out of it are told from its own files, at one look at each."""

import errno
import os
import stat
from pathlib import Path

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF})  # as `Path.is_file` has it


class FolderBounds:
    """A folder whose files are looked at; of links, what they lead to counts."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()
        self._is_inside: dict[str, bool] = {}

    def size(self, path: Path) -> int | None:
        """Return the bytes of a file; None if there is none of this name.

        Raises:
            OSError: the system does not let it be looked at.
        """
        try:
            status = os.stat(path)  # noqa: PTH116 - of many thousands: a Path builds a string each time
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def holds(self, path: Path) -> bool:
        """Return whether a file that exists lies inside the folder."""
        if os.path.islink(path):  # noqa: PTH114
            return self._root in path.resolve().parents
        parent = os.path.dirname(path)  # noqa: PTH120
        if parent not in self._is_inside:
            resolved = Path(parent).resolve()
            self._is_inside[parent] = resolved == self._root or self._root in resolved.parents
        return self._is_inside[parent]

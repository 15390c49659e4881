"""An audit hook that records acts which no command may commit: code from a file, programs, sockets, foreign writes."""

import os
import sys
from pathlib import Path
from typing import Any

_FORBIDDEN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
_WRITING = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "shutil.rmtree": 1,
}
"""Events whose first one or two arguments are paths that change."""
_DEVICES = ("/dev/null", "/dev/shm/")


def watch(folder: Path, descriptor: int) -> None:
    """Write a line to `descriptor` for each such act of this process from now on; the hook cannot be removed."""
    home = os.path.realpath(folder) + os.sep
    quiet = [False]

    def foreign(path: Any, *, follow: bool = False) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor, whose opening was seen
        named = Path(os.fsdecode(path))
        real = str(named.resolve() if follow else named.parent.resolve() / named.name)
        return not (real + os.sep).startswith(home) and not real.startswith(_DEVICES)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if quiet[0] or not (event in _FORBIDDEN or event in _WRITING or event == "open"):
            return
        quiet[0] = True
        try:
            if event in _FORBIDDEN:
                os.write(descriptor, f"{event} {arguments!r:.300}\n".encode(errors="replace"))
            elif event == "open":
                path, _, flags = arguments
                writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if writes and foreign(path, follow=True):
                    os.write(descriptor, f"writes {path!r}\n".encode(errors="replace"))
            elif any(foreign(path) for path in arguments[: _WRITING[event]]):
                os.write(descriptor, f"{event} {arguments!r:.300}\n".encode(errors="replace"))
        except ValueError:
            pass  # a path with a null byte, which is no path
        finally:
            quiet[0] = False

    sys.addaudithook(hook)

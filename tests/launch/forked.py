"""eaglepipe for tasks of tests, without the seconds that a fresh Python needs to import torch.

Started as a script, this is a client: it hands its arguments to a `ForkingServer` in the tests' process, which forks a
child that has imported everything. Signals go on to the child; the child is killed if the client is, and its exit code
becomes the client's.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET = "TESTS_FORKING_SOCKET"
_POLL_SECONDS = 0.01
_FORWARDED = ("EAGLEPIPE_", "CUDA_", "OMP_", "RANK", "LOCAL_", "WORLD_", "MASTER_", "TORCH_")


def client() -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    variables = {key: value for key, value in os.environ.items() if key.startswith(_FORWARDED)}
    connection.sendall(json.dumps({"arguments": sys.argv[1:], "variables": variables}).encode() + b"\n")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, _: connection.sendall(f"{number}\n".encode()))
    answer = json.loads(connection.makefile("rb").readline())
    sys.stdout.write(answer["output"])
    sys.stdout.flush()
    if answer["code"] < 0:
        if -answer["code"] != signal.SIGKILL:
            signal.signal(-answer["code"], signal.SIG_DFL)
        os.kill(os.getpid(), -answer["code"])
    sys.exit(answer["code"])


class ForkingServer:
    """Children for clients; `before` may give a fault for the arguments of one, as `start_eaglepipe` injects it."""

    def __init__(self, path: Path, before: Callable[[list[str]], Callable[[], object] | None]) -> None:
        self.children: dict[str, Any] = {}  # the newest child by the last of its arguments
        self._before = before
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        from tests.processes import start_eaglepipe

        stream = connection.makefile("rb")
        request = json.loads(stream.readline())
        arguments = request["arguments"]
        with self._lock:
            child = start_eaglepipe(*arguments, before=self._before(arguments), **request["variables"])
            self.children[arguments[-1]] = child
        gone = False
        while child.is_running:
            if not gone and select.select([connection], [], [], _POLL_SECONDS)[0]:
                line = connection.recv(64)
                gone = not line
                for number in [signal.SIGKILL] if gone else map(int, line.split()):
                    child.send_signal(signal.Signals(number))
        done = child.wait()
        if not gone:
            answer = {"code": done.returncode, "output": done.stdout + done.stderr}
            connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.close()


if __name__ == "__main__":
    client()

"""What a task may use, and how each executor is asked for it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from eaglepipe.errors import ConfigError

_SLURM_ONLY = ("partition", "account", "qos", "constraint", "time", "sbatch", "setup", "after")
_BYTES = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}  # as sbatch --mem counts


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Resources of one task, and what else a scheduler is told of it."""

    gpus: str | None = None  # a number, or of Slurm a type and a number
    cpus: int | None = None
    mem: str | None = None
    at_once: int | None = None
    retries: int = 3
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    sbatch: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    after: str | None = None

    @property
    def num_gpus(self) -> int:
        return 0 if self.gpus is None else int(self.gpus.rpartition(":")[2])

    @property
    def memory_bytes(self) -> int | None:
        if self.mem is None:
            return None
        number, unit = _memory(self.mem)
        return number * _BYTES[unit]

    def check(self, executor: str) -> None:
        """Check the options of an executor.

        Raises:
            ConfigError: an option that is malformed, or that the executor does not have.
        """
        if self.gpus is not None and not re.fullmatch(r"([A-Za-z][\w.-]*:)?\d+", self.gpus):
            raise ConfigError(f"--gpus {self.gpus!r}: expected a number, or with Slurm a type too, as in a100:2")
        if self.mem is not None:
            _memory(self.mem)
        for item in self.sbatch:
            if not re.fullmatch(r"-{0,2}[a-z][a-z-]*(=.*)?", item):
                raise ConfigError(f"--sbatch {item!r}: expected KEY=VALUE or KEY, a long option of sbatch")
            if (key := item.lstrip("-").partition("=")[0]) in _OWN_KEYS:
                raise ConfigError(f"--sbatch {item!r}: {_OWN_KEYS[key]}")
        if executor == "slurm":
            return
        defaults = {field.name: field.default for field in fields(self)}
        if foreign := [name for name in _SLURM_ONLY if getattr(self, name) != defaults[name]]:
            raise ConfigError(f"--{foreign[0].replace('_', '-')} is an option of --on slurm, not of --on {executor}")
        if self.gpus is not None and ":" in self.gpus:
            raise ConfigError(f"--gpus {self.gpus}: --on {executor} takes a number; types are Slurm's")

    def directives(self) -> list[tuple[str, str | None]]:
        """Return the options of sbatch."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": f"gpu:{self.gpus}" if self.num_gpus else None,
            "cpus-per-task": None if self.cpus is None else str(self.cpus),
            "mem": self.mem,
            "time": self.time,
        }
        extra = [item.lstrip("-").partition("=") for item in self.sbatch]
        return [
            *((name, value) for name, value in named.items() if value is not None),
            *((key, value if equals else None) for key, equals, value in extra),
        ]


def array_expression(numbers: Sequence[int], at_once: int | None) -> str:
    """Return the numbers of tasks as sbatch's --array takes them: 0-3,7%2."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
    return text if at_once is None or at_once >= len(numbers) else f"{text}%{at_once}"


_OWN_KEYS = {
    "array": "use --tasks and --at-once",
    "output": "use --logs; everything a task prints is in one file there",
    "error": "use --logs; everything a task prints is in one file there",
    "dependency": "use --after",
    "signal": "the signal before the time limit is what saves the work, and is set already",
    "parsable": "it is set already",
    "wrap": "the script is eaglepipe's own",
}


def _memory(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text, flags=re.IGNORECASE)
    if found is None:
        raise ConfigError(f"--mem {text!r}: expected a number and K, M, G or T, as in 64G")
    return int(found[1]), found[2].upper()

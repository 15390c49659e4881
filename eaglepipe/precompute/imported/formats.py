"""The tools whose stored states can be imported, and what their folders look like."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from eaglepipe.errors import ConfigError, DataError
from eaglepipe.precompute.imported.modelopt import ModelOptFolder
from eaglepipe.precompute.imported.nemo import NemoFolder
from eaglepipe.precompute.imported.reading import check_folder, walk_files
from eaglepipe.precompute.imported.sample import ForeignFolder
from eaglepipe.precompute.imported.specforge import SpecForgeFolder
from eaglepipe.precompute.imported.speculators import SpeculatorsFolder
from eaglepipe.recipe.config import SourceConfig

_LOOKED_AT = 10_000  # files of a folder, before it is of no known tool


@dataclass(frozen=True, kw_only=True)
class Format:
    """The files of a tool."""

    title: str
    open: Callable[[Path], ForeignFolder]
    prefix: str  # of its samples' file names
    suffixes: tuple[str, ...]

    def fits(self, name: str) -> bool:
        """Return whether a file may be one of its samples, by its name."""
        return name.startswith(self.prefix) and name.endswith(self.suffixes)


FORMATS: dict[str, Format] = {
    "speculators": Format(title="speculators", open=SpeculatorsFolder, prefix="hs_", suffixes=(".safetensors",)),
    "specforge": Format(title="SpecForge", open=SpecForgeFolder, prefix="", suffixes=(".ckpt", ".ckpt.gz")),
    "nemo": Format(title="NeMo Automodel", open=NemoFolder, prefix="shard-", suffixes=(".safetensors",)),
    "modelopt": Format(title="ModelOpt", open=ModelOptFolder, prefix="", suffixes=(".pt",)),
}


def check_format(name: str) -> None:
    """Raise ConfigError if there is no tool of this name."""
    if name in FORMATS:
        return
    close = get_close_matches(name.lower(), FORMATS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"FROM {name!r}: {hint}caches of these tools can be imported: {', '.join(FORMATS)}")


def open_foreign(source: SourceConfig) -> ForeignFolder:
    """Open the folder of a source with states.

    Raises:
        DataError: it is missing, or holds no samples of its tool; names the tool that it looks like.
    """
    folder, wanted = Path(source.path).expanduser(), FORMATS[source.format]
    check_folder(folder)
    try:
        return wanted.open(folder)
    except DataError as error:
        looks = _looks_like(folder)
        if looks is None or looks == source.format:
            raise
        if looks in FORMATS:
            advice = f"it looks like {FORMATS[looks].title}'s: `eaglepipe cache import {looks} {folder} …`"
        else:
            advice = looks
        raise DataError(f"{error}; {advice}") from None


def _looks_like(folder: Path) -> str | None:
    """Return the tool that wrote a folder, or a description of what else it is; None if that is not known."""
    if (folder / "plan.json").exists() and (folder / "shards").is_dir():
        return "it is a cache of eaglepipe already: see `eaglepipe cache recode` and `eaglepipe cache merge`"
    found = list(islice(walk_files(folder, ("",)), _LOOKED_AT))
    if not found:
        return "the folder is empty"
    counts = {name: sum(format_.fits(path.name) for path in found) for name, format_ in FORMATS.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] else f"its first file is {found[0].relative_to(folder)}"

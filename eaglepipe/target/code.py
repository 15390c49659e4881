"""Custom code that a target brings along; it only runs with `target.trust_remote_code`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from huggingface_hub import snapshot_download

from eaglepipe.errors import EaglepipeError, TargetError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.hub.fetch import Repository, from_hub

_FILES_WITH_REFERENCES = ("config.json", "tokenizer_config.json")


def code_fingerprint(folder: Path) -> str | None:
    """Hash the code of a model folder whose configs refer to some, with that of other repositories that they name.

    All `*.py` files count, since modules import each other. None if the configs (`auto_map`) refer to no code.

    Raises:
        TargetError: code in another repository that is not to be had.
    """
    references = sorted({reference for name in _FILES_WITH_REFERENCES for reference in _references(folder / name)})
    if not references:
        return None
    digest = xxhash.xxh3_128("\n".join(references).encode())
    for repository in sorted({reference.rpartition("--")[0] for reference in references}):
        root = _fetched(repository) if repository else folder
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root)
            if not any(part.startswith(".") for part in name.parts):
                digest.update(f"{repository}\0{name.as_posix()}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _references(config_file: Path) -> Iterator[str]:
    try:
        fields = read_json_object(config_file)
    except (EaglepipeError, OSError):
        return
    yield from _below_auto_map(fields, inside=False)


def _below_auto_map(value: Any, *, inside: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _below_auto_map(item, inside=inside or key == "auto_map")
    elif isinstance(value, list):
        for item in value:
            yield from _below_auto_map(item, inside=inside)
    elif inside and isinstance(value, str):
        yield value


def _fetched(repository: str) -> Path:
    if Path(repository).is_dir():
        return Path(repository)
    download = partial(snapshot_download, repository, allow_patterns=["*.py"])
    name = f"repository {repository!r}, which has the target's code (auto_map in its config)"
    return Path(from_hub(Repository(name=name, error=TargetError), download))

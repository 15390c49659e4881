"""A GGUF file is a target: dequantised once, exactly, and known by its own hash."""

import importlib.util
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from eaglepipe.cli import app
from eaglepipe.errors import TargetError
from eaglepipe.files.hashing import hash_file
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.load import load_target, resolve_folder
from tests.export.made_drafts import MadeTarget, make_draft, save_draft
from tests.processes import run_eaglepipe
from tests.target.gguf_files import write_gguf
from tests.tiny_project import TinyProject

Q8 = GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def model(project: TinyProject) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(project.folder / "target", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(project: TinyProject):
    return AutoTokenizer.from_pretrained(project.folder / "target")


@pytest.fixture(scope="module")
def exact(model, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exact") / "tiny-f32.gguf"
    write_gguf(path, model, tokenizer)
    return path


@pytest.fixture(scope="module")
def quantised(model, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / "tiny-q8.gguf"
    write_gguf(path, model, tokenizer, Q8)
    return path


@pytest.fixture(autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("dequantised")
    monkeypatch.setenv("EAGLEPIPE_GGUF_ROOT", str(folder))
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(24)[None] * 7 % 200).logits


def test_the_weights_of_an_exact_file_are_the_models(exact: Path, model, tokenizer) -> None:
    target = load_target(TargetConfig(path=str(exact)), "cpu")
    assert target.dtype == torch.float32
    torch.testing.assert_close(logits(target.model), logits(model), rtol=0, atol=0)
    read = AutoTokenizer.from_pretrained(target.folder)
    chat = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here."}]
    assert read.chat_template == tokenizer.chat_template
    assert read.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)


def test_quantised_weights_are_dequantised_exactly_and_run_in_bfloat16_by_default(quantised: Path, model) -> None:
    stored = load_target(TargetConfig(path=str(quantised), dtype="float32"), "cpu").model.state_dict()
    for name in ("model.layers.3.mlp.up_proj.weight", "lm_head.weight"):
        weight = model.state_dict()[name].numpy()
        dequantised = quants.dequantize(quants.quantize(weight, Q8), Q8)
        torch.testing.assert_close(stored[name], torch.from_numpy(dequantised), rtol=0, atol=0)
    assert load_target(TargetConfig(path=str(quantised)), "cpu").dtype == torch.bfloat16


def test_a_folder_with_one_file_is_that_file_which_is_dequantised_once(exact: Path, root: Path, tmp_path: Path) -> None:
    shutil.copy(exact, tmp_path / "renamed.gguf")
    first = resolve_folder(TargetConfig(path=str(exact.parent)))
    made = (first / "model.safetensors").stat()
    assert resolve_folder(TargetConfig(path=str(exact))) == first
    assert (first / "model.safetensors").stat() == made
    assert weights_fingerprint(first) == hash_file(exact)
    assert weights_fingerprint(resolve_folder(TargetConfig(path=str(tmp_path)))) == hash_file(exact)


def test_processes_that_need_it_at_once_share_it(exact: Path, root: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: resolve_folder(TargetConfig(path=str(exact))), range(3)))
    assert len(folders) == 1
    assert [path.name for path in root.iterdir() if path.is_dir()] == [folders.pop().name]


def test_changed_weights_are_no_longer_those_of_the_file(exact: Path) -> None:
    weights = resolve_folder(TargetConfig(path=str(exact))) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(TargetError, match=r"not those that tiny-f32\.gguf was dequantised into; delete the folder"):
        weights_fingerprint(weights.parent)


def test_a_draft_is_checked_against_it_as_against_the_models_own_folder(
    exact: Path, project: TinyProject, tmp_path: Path
) -> None:
    draft = save_draft(make_draft(MadeTarget()), tmp_path / "draft")
    told = [
        CliRunner().invoke(app, ["export", "--check", str(draft), "--to", "vllm", "--target", str(target)]).stdout
        for target in (project.target, exact, exact.parent)
    ]
    assert told[0]
    assert told[0] == told[1] == told[2]


def test_several_files_and_parts_are_refused(exact: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(exact, tmp_path / name)
    with pytest.raises(TargetError, match=r"2 GGUF files; set target\.path to one of them: a\.gguf, b\.gguf"):
        resolve_folder(TargetConfig(path=str(tmp_path)))
    assert weights_fingerprint(resolve_folder(TargetConfig(path=str(tmp_path / "b.gguf")))) == hash_file(exact)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in (1, 2):
        shutil.copy(exact, parts / f"big-0000{number}-of-00002.gguf")
    for path in (parts, parts / "big-00002-of-00002.gguf"):
        with pytest.raises(TargetError, match=r"parts of a GGUF model.*merge"):
            resolve_folder(TargetConfig(path=str(path)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"x", "not a GGUF file, or a damaged one"),
        (lambda data: data[:100], "cannot be read as a GGUF model"),
        (lambda data: data[: len(data) // 2], "cannot be read as a GGUF model"),
        (lambda data: data[:8] + b"\xff" * 16 + data[24:], "cannot be read as a GGUF model"),
    ],
    ids=["magic", "header", "half", "counts"],
)
def test_a_damaged_file_is_refused_in_one_line(exact: Path, root: Path, tmp_path: Path, damage, words: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(damage(exact.read_bytes()))
    with pytest.raises(TargetError, match=words) as refusal:
        resolve_folder(TargetConfig(path=str(path)))
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [entry for entry in root.iterdir() if entry.is_dir()] == []


def test_an_architecture_that_transformers_cannot_read_is_named(model, tokenizer, tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", model, tokenizer, architecture="plamo9")
    with pytest.raises(TargetError, match="plamo9"):
        resolve_folder(TargetConfig(path=str(tmp_path)))


def test_a_missing_package_is_named_with_the_command(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(TargetError, match=r"needs gguf, which is not installed: pip install 'eaglepipe\[gguf\]'"):
        resolve_folder(TargetConfig(path=str(exact)))


def test_a_cache_is_made_from_it(exact: Path, root: Path, project: TinyProject, tmp_path: Path) -> None:
    settings = [f"target.path={exact}", f"cache.root={tmp_path / 'caches'}"]
    done = run_eaglepipe("precompute", project.recipe_file, *settings, EAGLEPIPE_GGUF_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    assert f"dequantising {exact} once" in done.stderr
    again = run_eaglepipe("precompute", project.recipe_file, *settings, EAGLEPIPE_GGUF_ROOT=str(root))
    assert "already complete" in again.stdout
    assert "dequantising" not in again.stderr

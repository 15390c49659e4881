"""What transformers would leave out of a GGUF file, or make up, is carried over or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.load import load_target, resolve_folder
from tests.target.gguf_files import write_gguf

HEADS, HEAD_DIM = 2, 32
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("dequantised")
    monkeypatch.setenv("EAGLEPIPE_GGUF_ROOT", str(folder))
    return folder


def make_model(**rope: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=32_768,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 500_000.0},
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits at positions that the two ends of the rope tell apart."""
    positions = torch.tensor([[0, 1, 900, 7000, 20_000, 32_000]])
    return model(input_ids=torch.tensor([[5, 9, 31, 4, 60, 2]]), position_ids=positions).logits


def factors(model: LlamaForCausalLM) -> np.ndarray:
    """Return the tensor of a Llama 3 file: the unscaled frequencies over those of the model."""
    unscaled = 500_000.0 ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    return (unscaled / model.model.rotary_emb.inv_freq.double()).float().numpy()


def refusal(path: Path) -> str:
    with pytest.raises(TargetError) as refused:
        resolve_folder(TargetConfig(path=str(path)))
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_the_rope_of_llama_3_comes_along(tmp_path: Path) -> None:
    model = make_model(**LLAMA3)
    scaling = factors(model)
    assert scaling.min() == pytest.approx(1) and scaling.max() == pytest.approx(8)
    write_gguf(tmp_path / "l3.gguf", model, None, extra={"rope_freqs.weight": scaling})
    target = load_target(TargetConfig(path=str(tmp_path)), "cpu").model
    torch.testing.assert_close(logits(target), logits(model), rtol=1e-5, atol=1e-6)
    plain = make_model()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(logits(plain), logits(model), rtol=1e-3, atol=1e-4)


def test_rope_factors_that_no_config_gives_are_refused(tmp_path: Path) -> None:
    model = make_model()
    odd = np.linspace(1, 3, HEAD_DIM // 2, dtype=np.float32)
    write_gguf(tmp_path / "odd.gguf", model, None, extra={"rope_freqs.weight": odd})
    assert "rope scaling (tensor rope_freqs.weight)" in refusal(tmp_path / "odd.gguf")


def test_a_file_without_one_tensor_is_not_filled_up_at_random(tmp_path: Path) -> None:
    write_gguf(tmp_path / "gap.gguf", make_model(), None, without="blk.1.ffn_up.weight")
    assert "missing keys: model.layers.1.mlp.up_proj.weight" in refusal(tmp_path / "gap.gguf")


def test_tensors_that_transformers_drops_are_not_lost_without_a_word(tmp_path: Path) -> None:
    bias = np.ones(HEADS * HEAD_DIM, dtype=np.float32)
    write_gguf(tmp_path / "biased.gguf", make_model(), None, extra={"blk.0.attn_q.bias": bias})
    assert f"{len(bias)} of its" in refusal(tmp_path / "biased.gguf")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    norm = np.full(HEADS * HEAD_DIM, np.nan, dtype=np.float32)
    write_gguf(tmp_path / "nan.gguf", make_model(), None, extra={"output_norm.weight": norm})
    assert "model.norm.weight holds numbers that are not finite" in refusal(tmp_path / "nan.gguf")


def test_a_folder_with_a_config_and_no_other_weights_is_its_gguf_file(tmp_path: Path) -> None:
    model = make_model()
    write_gguf(tmp_path / "only.gguf", model, None)
    model.config.save_pretrained(tmp_path)
    folder = resolve_folder(TargetConfig(path=str(tmp_path)))
    assert folder != tmp_path
    model.save_pretrained(tmp_path)
    assert resolve_folder(TargetConfig(path=str(tmp_path))) == tmp_path


def test_a_file_without_tokenizer_is_a_target_without_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "bare.gguf", make_model(), None)
    folder = resolve_folder(TargetConfig(path=str(tmp_path)))
    assert not list(folder.glob("tokenizer*"))
    with pytest.raises((OSError, ValueError)):
        AutoTokenizer.from_pretrained(folder)


def test_folders_that_killed_processes_left_are_removed(tmp_path: Path, root: Path) -> None:
    left = root / ".other-0123456789abcdef.0123456789abcdef0123456789abcdef.tmp"
    left.mkdir()
    write_gguf(tmp_path / "next.gguf", make_model(), None)
    resolve_folder(TargetConfig(path=str(tmp_path)))
    assert not left.exists()


def test_a_pointer_of_git_lfs_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "big.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in refusal(tmp_path / "big.gguf")

import json
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BambaConfig, JambaConfig, LlamaConfig, LlamaForCausalLM, OPTConfig

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.head_only import HeadOnlyTarget, load_head_only
from eaglepipe.target.load import load_target
from eaglepipe.vocab import build_draft_vocab
from tests import tiny_architectures
from tests.target.tiny_targets import CONFIGS, HIDDEN, LAYERS, SHAPE, VOCAB, save_target

HYBRID = {name: value for name, value in SHAPE.items() if name != "head_dim"}
EVERY = {
    **tiny_architectures.CONFIGS,
    **CONFIGS,
    "jamba": JambaConfig(**HYBRID, num_experts=2, mamba_dt_rank=4, attn_layer_offset=1, attn_layer_period=2),
    "bamba": BambaConfig(**HYBRID, attn_layer_indices=[1, 3], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
}
# One of each form: offset norms and soft caps, scales, a norm with a bias, tied heads, parts beside the text, experts.
FORMS = {
    "llama-tied": "bfloat16",
    "gemma2": "auto",
    "Gemma3ForConditionalGeneration": "bfloat16",
    "granite": "auto",
    "cohere2": "auto",
    "phi": "auto",
    "gpt2": "auto",
    "qwen3-moe": "auto",
    "gpt-oss": "bfloat16",
    "Llama4ForConditionalGeneration": "auto",
    "DeepseekV3ForCausalLM": "auto",
    "jamba": "auto",
    "bamba": "auto",
}
FLOAT8 = torch.float8_e4m3fn


def vocab(size=VOCAB):
    return build_draft_vocab(np.arange(size), 20, size)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_states_and_tensors_are_those_of_the_whole_target(name, tmp_path):
    config = TargetConfig(path=str(save_target(EVERY[name], tmp_path)), dtype=FORMS[name])
    check_equal(HFEagle3TargetModel(load_target(config, "cpu"), [1, LAYERS]), load_head_only(config))


def check_equal(whole: HFEagle3TargetModel, alone: HeadOnlyTarget) -> None:
    ids = torch.arange(3, 50)[None]
    states = whole.capture(ids, torch.ones_like(ids))
    last_hidden = alone.final_norm(states.aux[0, :, -1])
    assert torch.equal(last_hidden, states.last_hidden[0])
    assert torch.equal(alone.head_logits(last_hidden), whole.head_logits(last_hidden))
    assert alone.head_spec() == whole.head_spec()
    assert alone.config_json() == whole.config_json()
    assert (alone.architectures, alone.dtype, alone.hidden_size) == (whole.architectures, whole.target.dtype, HIDDEN)
    size = whole.target.vocab_size
    have, want = (model.draft_start_tensors(vocab(size), full_head=True) for model in (alone, whole))
    assert have.keys() == want.keys() and all(torch.equal(have[key], want[key]) for key in want)
    assert all(have[key].dtype == want[key].dtype for key in want)


def write(folder, tensors, **config_fields):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **config_fields}))


@pytest.mark.parametrize("method", ["fp8", "awq", "gptq", "compressed-tensors", "mxfp4"])
def test_of_a_target_with_quantised_layers_the_plain_parts_are_read(method, tmp_path):
    """As the formats store them: other names, other types, and no plain weight in any layer."""
    name = "gpt-oss" if method == "mxfp4" else "llama"
    config = TargetConfig(path=str(save_target(CONFIGS[name], tmp_path)))
    plain = load_head_only(config)
    tensors = {}
    for key, tensor in load_file(tmp_path / "model.safetensors").items():
        base = key.removesuffix(".weight")
        if ".layers." not in key or tensor.ndim == 1:
            tensors[key] = tensor
        elif method == "fp8":
            tensors |= {key: tensor.to(FLOAT8), f"{base}.weight_scale_inv": torch.ones(1, 1)}
        elif method == "mxfp4":
            tensors |= {f"{base}_blocks": tensor.to(torch.uint8), f"{base}_scales": torch.ones(4, dtype=torch.uint8)}
        else:
            packed = "weight_packed" if method == "compressed-tensors" else "qweight"
            tensors |= {f"{base}.{packed}": tensor.to(torch.int32), f"{base}.scales": torch.ones(4)}
    stated = {"quant_method": method, "bits": 4}
    write(tmp_path, tensors, quantization_config=stated)
    alone = load_head_only(config)
    have, want = (model.draft_start_tensors(vocab(), full_head=True) for model in (alone, plain))
    assert have.keys() == want.keys() and all(torch.equal(have[key], want[key]) for key in want)
    states = torch.randn(5, HIDDEN)
    assert torch.equal(alone.head_logits(alone.final_norm(states)), plain.head_logits(plain.final_norm(states)))
    assert alone.config_json() == {**plain.config_json(), "quantization_config": stated}


@pytest.mark.parametrize(
    ("tensor", "replaced_by"),
    [
        ("lm_head.weight", {"lm_head.qweight": torch.int32, "lm_head.scales": torch.float16}),
        ("lm_head.weight", {"lm_head.weight": FLOAT8, "lm_head.weight_scale": torch.float32}),
        ("model.embed_tokens.weight", {"model.embed_tokens.weight_packed": torch.int32}),
        ("model.embed_tokens.weight", {"model.embed_tokens.weight": FLOAT8}),
    ],
)
def test_quantised_embeddings_and_heads_are_refused_by_the_name_of_the_tensor(tensor, replaced_by, tmp_path):
    config = TargetConfig(path=str(save_target(CONFIGS["llama"], tmp_path)))
    tensors = load_file(tmp_path / "model.safetensors")
    whole = tensors.pop(tensor)
    write(tmp_path, tensors | {name: whole.to(dtype) for name, dtype in replaced_by.items()})
    with pytest.raises(TargetError, match="|".join(rf"tensor {name}," for name in replaced_by)) as refused:
        load_head_only(config)
    assert "target.engine: transformers" in str(refused.value)


def test_a_decoder_that_ends_in_more_than_a_norm_is_refused(tmp_path):
    sizes = {name: value for name, value in HYBRID.items() if name != "num_key_value_heads"}
    save_target(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=16), tmp_path)
    with pytest.raises(
        TargetError, match=r"OPTForCausalLM: its decoder does not run apart.*target\.engine: transformers"
    ):
        load_head_only(TargetConfig(path=str(tmp_path)))


def test_a_part_that_is_missing_or_of_another_shape_is_refused(tmp_path):
    config = TargetConfig(path=str(save_target(CONFIGS["llama"], tmp_path)))
    tensors = load_file(tmp_path / "model.safetensors")
    write(tmp_path, {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"})
    with pytest.raises(TargetError, match=r"missing keys: model\.norm\.weight"):
        load_head_only(config)
    write(tmp_path, tensors | {"lm_head.weight": torch.zeros(VOCAB - 1, HIDDEN)})
    with pytest.raises(TargetError, match=r"mismatched keys: lm_head\.weight is \[66, 32\], not \[67, 32\]"):
        load_head_only(config)


def test_a_target_larger_than_memory_is_read_but_for_its_layers(tmp_path):
    """Layers of 1.5 GiB each, all holes: any of them read as a whole would show."""
    wide = LlamaConfig(**{**SHAPE, "intermediate_size": 4 * 2**20, "num_hidden_layers": 40})
    wide.save_pretrained(tmp_path)
    small = save_target(CONFIGS["llama"], tmp_path / "small")
    plain = {key: value for key, value in load_file(small / "model.safetensors").items() if ".layers." not in key}
    save_file(plain, tmp_path / "head.safetensors", metadata={"format": "pt"})
    with torch.device("meta"):
        layers = LlamaForCausalLM(wide).state_dict()
    index = dict.fromkeys(plain, "head.safetensors")
    for layer in range(40):
        names = [name for name in layers if f".layers.{layer}." in name]
        write_holes(tmp_path / f"layer-{layer}.safetensors", {name: layers[name].shape for name in names})
        index |= dict.fromkeys(names, f"layer-{layer}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    alone = load_head_only(TargetConfig(path=str(tmp_path), dtype="float32"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    expected = load_head_only(TargetConfig(path=str(small))).draft_start_tensors(vocab(), full_head=True)
    have = alone.draft_start_tensors(vocab(), full_head=True)
    assert all(torch.equal(have[key], expected[key]) for key in expected)


def write_holes(file, shapes):
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape.numel()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)

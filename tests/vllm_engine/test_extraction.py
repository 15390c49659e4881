import pytest
import transformers as hf

from eaglepipe.errors import ConfigError, TargetError
from eaglepipe.vllm_engine.extraction import check_extraction
from tests.tiny_architectures import CONFIGS

TAKEN = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM"]
REFUSED = {
    "DeepseekV3ForCausalLM": "deepseek_v3 keeps latent keys and values",
    "Gemma2ForCausalLM": "vLLM runs Gemma2ForCausalLM, but hands out none",
    "MixtralForCausalLM": "vLLM runs MixtralForCausalLM, but hands out none",
}


def check(name, **engine_args):
    config = CONFIGS[name]
    config.architectures = [name]
    check_extraction(config, engine_args, path="org/model")


@pytest.mark.parametrize("name", TAKEN)
def test_targets_that_the_engine_takes_pass(name):
    check(name, tensor_parallel_size=2, model_impl="vllm", pipeline_parallel_size=1)


@pytest.mark.parametrize("name", REFUSED)
def test_targets_whose_states_the_engine_keeps_are_refused_with_the_alternative(name):
    with pytest.raises(TargetError, match=rf"target 'org/model': {REFUSED[name]}.*set target\.engine: transformers"):
        check(name)


@pytest.mark.parametrize("kind", [hf.MambaConfig, hf.JambaConfig, hf.Lfm2Config])
def test_recurrent_targets_are_refused(kind):
    config = kind(architectures=[kind.__name__.replace("Config", "ForCausalLM")])
    with pytest.raises(TargetError, match=r"recurrent state.*target\.engine: transformers"):
        check_extraction(config, {}, path="m")


def test_pipelines_of_stages_are_refused():
    with pytest.raises(ConfigError, match=r"pipeline_parallel_size: 2: .*tensor_parallel_size"):
        check("LlamaForCausalLM", pipeline_parallel_size=2)


def test_the_engine_cannot_be_told_to_run_the_code_of_transformers():
    with pytest.raises(ConfigError, match="model_impl"):
        check("LlamaForCausalLM", model_impl="transformers")


def test_the_names_that_the_engine_is_told_count():
    with pytest.raises(TargetError, match="GemmaForCausalLM"):
        check("LlamaForCausalLM", hf_overrides={"architectures": ["GemmaForCausalLM"]})

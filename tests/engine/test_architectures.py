"""The tables of architectures against the classes of the engine that is installed."""

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from eaglepipe.vllm_engine.architectures import (
    RECURRENT_WITHOUT_AUX_STATES,
    WITHOUT_AUX_STATES,
)


def test_the_tables_are_what_the_engines_classes_say():
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import is_attention_free, is_hybrid, supports_eagle3

    refused = WITHOUT_AUX_STATES | RECURRENT_WITHOUT_AUX_STATES
    assert refused <= ModelRegistry.models.keys()
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    known = {name for mapping in mappings for value in mapping.values() for name in _names(value)}
    seen = 0
    for name in (known & ModelRegistry.models.keys()) | refused:
        try:
            model = ModelRegistry.models[name].load_model_cls()
        except ImportError:  # parts that read images need packages that are not there
            continue
        seen += 1
        assert supports_eagle3(model) == (name not in refused), name
        if name in refused:
            assert (is_hybrid(model) or is_attention_free(model)) == (name in RECURRENT_WITHOUT_AUX_STATES), name
    assert seen > 60


def _names(value):
    return value if isinstance(value, list | tuple) else [value]

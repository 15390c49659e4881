"""The time of a target's forward over a corpus, from its size and the device's measured matrix-product rate."""

import time

import torch
from transformers import PretrainedConfig

from eaglepipe.devices import resolve_device
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.load import auto_class, text_config_of

_DIMENSION = {"cpu": 1024, "cuda": 8192}
_MEASURE_SECONDS = 0.3
# Share of the matrix-product rate that a whole forward of a transformer usually reaches.
_FORWARD_EFFICIENCY = 0.5


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a square matrix product in `dtype`, for a fraction of a second."""
    size = _DIMENSION.get(device.type, 1024)
    matrix = torch.randn(size, size, device=device).to(dtype)
    _synchronise(device)
    (matrix @ matrix).sum().item()
    repeats, started = 0, time.perf_counter()
    while time.perf_counter() - started < _MEASURE_SECONDS:
        matrix @ matrix
        _synchronise(device)
        repeats += 1
    return 2 * size**3 * repeats / (time.perf_counter() - started)


def forward_seconds(target: TargetConfig, model_config: PretrainedConfig, device: str, num_tokens: int) -> float:
    """Estimate the seconds of forward on one device: 2 FLOP a parameter and token, idle MoE experts left out."""
    config = text_config_of(model_config, target.path)
    parameters = num_parameters(model_config, target.trust_remote_code) * _active_share(config)
    name = target.dtype if target.dtype != "auto" else str(config.dtype or "float32")
    dtype = getattr(torch, name.removeprefix("torch."))
    return 2 * parameters * num_tokens / (_FORWARD_EFFICIENCY * matmul_rate(resolve_device(device), dtype))


def num_parameters(model_config: PretrainedConfig, trust_remote_code: bool = False) -> int:
    """Count the parameters of a model of this config, none of which is read or allocated."""
    with torch.device("meta"):
        model = auto_class(model_config).from_config(model_config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())


def _active_share(config: object) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    return min(1.0, active / experts) if experts and active else 1.0


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

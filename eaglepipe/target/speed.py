"""How long a target's forward over a corpus will take, from its size and the device's measured matrix-product rate."""

import time

import torch

from eaglepipe.devices import resolve_device
from eaglepipe.recipe.load import Recipe
from eaglepipe.target.fingerprint import num_parameters
from eaglepipe.target.load import read_target_config, resolve_folder

_DIMENSION = {"cpu": 1024, "cuda": 8192}
_MEASURE_SECONDS = 0.3
# Share of the matrix-product rate that a whole forward of a transformer usually reaches.
_FORWARD_EFFICIENCY = 0.5


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product in `dtype`, measured for a fraction of a second."""
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


def forward_seconds(recipe: Recipe, num_tokens: int) -> float:
    """Rough seconds of forward on one device: 2 FLOP a parameter and token, MoE experts that are not used left out."""
    device = resolve_device(recipe.precompute.device)
    config = read_target_config(recipe.target)
    parameters = num_parameters(resolve_folder(recipe.target)) * _active_share(config)
    name = recipe.target.dtype if recipe.target.dtype != "auto" else str(config.dtype or "float32")
    dtype = getattr(torch, name.removeprefix("torch."))
    return 2 * parameters * num_tokens / (_FORWARD_EFFICIENCY * matmul_rate(device, dtype))


def _active_share(config: object) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    return min(1.0, active / experts) if experts and active else 1.0


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What all workers must agree on before the first shard: the codecs' calibration, from the first samples of the plan.

Whoever publishes it first decides; everybody else reads it.
"""

from collections.abc import Iterator

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from eaglepipe.cache.bound_codecs import CacheCodecs, bind_codecs, calibration_tensors, needs_calibration
from eaglepipe.cache.calibration import CODEC_FILE
from eaglepipe.cache.publish import put_if_absent
from eaglepipe.errors import CorruptError
from eaglepipe.target.batch_job import Encoding
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.inputs import Inputs
from eaglepipe.target.plan import Work

_CALIBRATION_TOKENS = 4096


def agree_on_encoding(inputs: Inputs, work: Work, model: HFEagle3TargetModel) -> Encoding:
    """How this cache is encoded; calibrates it where no worker has yet.

    Raises:
        CorruptError: the calibration in the folder cannot be used.
    """
    return Encoding(
        spec=inputs.spec,
        codecs=_codecs(inputs, work, model),
        sparse_rule=inputs.sparse_rule,
        end_of_turn=inputs.chat.end_of_turn if inputs.chat else None,
    )


def _codecs(inputs: Inputs, work: Work, model: HFEagle3TargetModel) -> CacheCodecs:
    spec = inputs.spec
    if not needs_calibration(spec):
        return CacheCodecs(aux=spec.aux, rows=spec.rows)
    path = work.folder / CODEC_FILE
    if not path.exists():
        states = list(_first_states(work, model))
        aux = torch.cat([aux for aux, _ in states])
        last_hidden = torch.cat([last_hidden for _, last_hidden in states])
        put_if_absent(path, save(calibration_tensors(spec, aux, last_hidden)))
    try:
        return bind_codecs(spec, load_file(path))
    except SafetensorError as error:
        raise CorruptError(f"{path}: not readable ({error}); remove this cache's folder and start again") from None


@torch.no_grad()
def _first_states(work: Work, model: HFEagle3TargetModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Aux and last hidden states of the plan's first samples, each alone in its forward, so that no budget matters."""
    found = 0
    for sample in (int(sample) for shard in work.shards for batch in shard for sample in batch):
        if found >= _CALIBRATION_TOKENS:
            return
        input_ids = torch.from_numpy(work.tokens.read(sample).input_ids.copy()).long()[None].to(model.target.device)
        states = model.capture(input_ids, torch.ones_like(input_ids))
        finite = (states.aux[0].flatten(1).isfinite().all(1) & states.last_hidden[0].isfinite().all(1)).cpu()
        found += int(finite.sum())
        yield states.aux[0].cpu()[finite], states.last_hidden[0].cpu()[finite]

"""Checks of the settings of a P-EAGLE trainer."""

from typing import Any

import torch

from eaglepipe.eagle.peagle_data import CodSettings
from eaglepipe.eagle.unroll.checks import check_vocabulary
from eaglepipe.errors import DraftError


def check_peagle_settings(
    config: Any,
    selected_token_ids: torch.Tensor,
    selected_token_mask: torch.Tensor,
    *,
    settings: CodSettings,
    sequence_partitions: int,
) -> None:
    """Check the settings that a P-EAGLE trainer is built from.

    Raises:
        DraftError: naming the setting.
    """
    for name, value in (("depths", settings.depths), ("sequence_partitions", sequence_partitions)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DraftError(f"{name} must be an int of at least 1, not {value!r}")
    if not 0.0 < settings.ratio <= 1.0:
        raise DraftError(f"cod_ratio must be above 0 and at most 1, not {settings.ratio!r}")
    if not 0.0 <= settings.min_ratio <= 1.0:
        raise DraftError(f"cod_min_ratio must be from 0 to 1, not {settings.min_ratio!r}")
    if not getattr(config, "parallel_drafting", False):
        raise DraftError("P-EAGLE needs a draft with mask_hidden; build its config with parallel_drafting")
    if getattr(config, "mask_token_id", None) is None:
        raise DraftError("P-EAGLE without mask token: the draft's config has no mask_token_id")
    check_vocabulary(config, selected_token_ids, selected_token_mask)

"""The size of a target, by its config alone."""

import pytest

from eaglepipe.target.load import num_parameters
from tests.target.tiny_targets import CONFIGS, make_model


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_of_a_config_are_those_of_its_model(name: str) -> None:
    assert num_parameters(CONFIGS[name]) == sum(p.numel() for p in make_model(CONFIGS[name]).parameters())

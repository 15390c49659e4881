"""A backend of hidden states for speculators 0.9: its trainer reads a cache where it would read a file a sample.

The classes have the methods of `hs_connectors.HiddenStatesTransfer` and `HiddenStatesBackend`, which speculators calls;
they derive from neither, so that this module can be imported without speculators.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import ConfigError
from eaglepipe.speculators_backend.states import CacheStates

NAME = "eaglepipe"


def register() -> None:
    """Make speculators know the backend `eaglepipe`; to be called before `speculators.train` is imported.

    Raises:
        ConfigError: speculators is not installed.
    """
    try:
        from hs_connectors import HiddenStatesBackend
    except ImportError as error:
        raise ConfigError(
            f"{error}: this backend is for the trainer of speculators 0.9; install it (`pip install speculators`) in "
            "this environment"
        ) from None
    if NAME not in HiddenStatesBackend.registry:
        HiddenStatesBackend.register(NAME)(CacheBackend)


class CacheTransfer:
    """Samples of a cache: row i of the dataset is sample i. Workers open the cache by themselves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states: CacheStates | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_states": None}

    def setup(self) -> None:
        """Do nothing: there is no server."""

    def get_cached(self, file_idx: int) -> dict[str, torch.Tensor] | None:
        """Return `token_ids` and `hidden_states` of a sample; None beyond the last."""
        self._states = self._states or CacheStates(self._folder)
        return self._states.read(file_idx) if file_idx < self._states.cache.num_samples else None

    def get_generated(self, hs_transfer_params: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        """Return None: a cache holds what it holds."""
        return None

    def delete(self, handle: str) -> None:
        """Do nothing: a cache is never changed."""


class CacheBackend:
    """`--hidden-states-backend eaglepipe --eaglepipe-cache FOLDER`."""

    @staticmethod
    def add_train_args(parser: argparse.ArgumentParser) -> None:
        """Add the option that names the cache."""
        parser.add_argument("--eaglepipe-cache", type=str, default=None, help="Folder of a complete eaglepipe cache.")

    @staticmethod
    def add_launch_args(parser: argparse.ArgumentParser) -> None:
        """Add nothing: no server is launched."""

    @staticmethod
    def from_train_args(args: argparse.Namespace, data_path: str) -> CacheTransfer:
        """Return the reader of the cache, which is opened once, so that faults are known before training begins."""
        if not args.eaglepipe_cache:
            raise ConfigError(f"--hidden-states-backend {NAME} needs --eaglepipe-cache FOLDER")
        CacheStates(Path(args.eaglepipe_cache))
        return CacheTransfer(Path(args.eaglepipe_cache))

    @staticmethod
    def build_kv_transfer_config(args: argparse.Namespace) -> dict[str, Any]:
        """Raise ConfigError: vLLM writes no cache of ours through this backend."""
        raise ConfigError(f"the backend {NAME} only reads caches; launch vLLM with another one")

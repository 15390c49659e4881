"""`python -m eaglepipe.speculators_backend`: `data CACHE FOLDER`, then `train ARGUMENTS` of speculators' trainer."""

import sys
from collections.abc import Callable
from pathlib import Path

from eaglepipe.errors import EXIT_USER, EaglepipeError

_USAGE = """\
usage: python -m eaglepipe.speculators_backend data CACHE FOLDER
       python -m eaglepipe.speculators_backend train --data-path FOLDER --eaglepipe-cache CACHE [ARGUMENT ...]
data writes the dataset of a cache for speculators; train runs its trainer on the cache, with any of its arguments.
"""


def main(arguments: list[str]) -> int:
    """Run one of the two commands; returns the exit code."""
    match arguments:
        case ["data", cache, folder]:
            return _guarded(lambda: _data(Path(cache), Path(folder)))
        case ["train", *rest] if rest:
            return _guarded(lambda: _train(rest))
        case _:
            print(_USAGE, end="", file=sys.stderr)
            return EXIT_USER


def _data(cache: Path, folder: Path) -> None:
    from eaglepipe.speculators_backend.data_folder import write_data_folder
    from eaglepipe.speculators_backend.states import CacheStates

    states = CacheStates(cache)
    write_data_folder(states, folder)
    layers = " ".join(map(str, states.cache.spec.aux_layer_ids))
    print(
        f"train with: python -m eaglepipe.speculators_backend train --data-path {folder} --eaglepipe-cache {cache} "
        f"--target-layer-ids {layers} --draft-vocab-size {states.cache.vocab.size} --verifier-name-or-path TARGET "
        "--speculator-type eagle3"
    )


def _train(arguments: list[str]) -> None:
    from eaglepipe.speculators_backend.backend import NAME, register

    register()  # before speculators reads its registry
    from speculators.train.cli import main as train
    from speculators.train.config import TrainConfig

    train(TrainConfig.resolve(["--hidden-states-backend", NAME, "--on-missing", "raise", *arguments]))


def _guarded(action: Callable[[], None]) -> int:
    try:
        action()
    except EaglepipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

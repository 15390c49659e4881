"""The packages that have an EAGLE-3 training step to compare with, each with the class that runs it."""

from collections.abc import Callable, Mapping

from eaglepipe.bench.peers.comparison import Peer
from eaglepipe.bench.peers.nemo_eagle3 import NemoEagle3
from eaglepipe.bench.peers.packages import NEMO_AUTOMODEL, SPECFORGE, SPECULATORS, PeerPackage
from eaglepipe.bench.peers.specforge_eagle3 import SpecforgeEagle3
from eaglepipe.bench.peers.speculators_eagle3 import SpeculatorsEagle3
from eaglepipe.bench.step_paths import StepPath

EAGLE3_PEERS: Mapping[PeerPackage, Callable[[StepPath], Peer]] = {
    SPECULATORS: SpeculatorsEagle3,
    SPECFORGE: SpecforgeEagle3,
    NEMO_AUTOMODEL: NemoEagle3,
}

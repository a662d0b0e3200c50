"""The order in which packs are trained on."""

from dsm_engine import _core
from dsm_engine.data.pack_index import check_word


class PackOrder:
    """The order of the packs, stateless: position p is in epoch p // num_packs.

    Every epoch is a permutation of its own; any rank of any layout asks for any position in O(1).
    Raises DsmError where there is no pack to order.
    """

    def __init__(self, num_packs: int, seed: int) -> None:
        self.num_packs = num_packs
        self.seed = check_word("seed", seed)
        self._core = _core.PackOrder(num_packs, seed)

    def pack_at(self, position: int) -> int:
        """The pack at `position` >= 0. Raises DsmError below 0."""
        return self._core.pack_at(position)

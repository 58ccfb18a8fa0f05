"""The methods compared, in the order of the table. A new one is a function and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from arms.base import Arm, Result, Settings
from arms.classical import best_gaussian_filter, bm4d, noisy, non_local_means
from arms.ours import SMALL, adapted, adapted_blind, base, ours, ours_blind, small
from arms.published import ar_dae, dsm
from arms.twins import mc_sure, noise2noise, noise2void, supervised, supervised_adapted

__all__ = ["ARMS", "Arm", "Result", "Settings"]

ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "noisy": Arm("noisy", noisy),
        "gaussian": Arm("Gaussian filter, oracle width", best_gaussian_filter, truth=True),
        "nlm": Arm("non-local means, true level", non_local_means),
        "bm4d": Arm("BM4D, true level", bm4d),
        "supervised": Arm("supervised, same net and steps", supervised, truth=True, trains=True),
        "n2n": Arm("Noise2Noise (a second scan)", noise2noise, truth=True, trains=True),
        "mcsure": Arm("MC-SURE, for Poisson MC-PURE", mc_sure, trains=True),
        "n2v": Arm("Noise2Void", noise2void, trains=True),
        "dsm": Arm("DSM as published", dsm, trains=True),
        "paper": Arm("AR-DAE, the paper's recipe", ar_dae, trains=True),
        "ours": Arm("ours", ours, trains=True),
        "blind": Arm("ours, blind level", ours_blind, trains=True),
        "twin": Arm("base weights, adapted to the clean volume", supervised_adapted, truth=True, adapts=True),
        "small": Arm("base-3d-small as they are, one pass", small, adapts=True, weights=SMALL),
        "base": Arm("base weights as they are", base, adapts=True),
        "adapted": Arm("base weights, adapted", adapted, adapts=True),
        "adapted-blind": Arm("base weights, adapted, blind level", adapted_blind, adapts=True),
    }
)

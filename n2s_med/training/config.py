"""How to train: every key, its default and its range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from n2s_med.errors import ConfigurationError
from n2s_med.score.objectives import OBJECTIVES
from n2s_med.score.splitting import KEPT


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; every key can be given on the command line or in a configuration file.

    Attributes
    ----------
    steps
        Optimizer steps, or 0 to fill ``seconds``.
    seconds
        Time budget; it becomes a number of steps at the start, and that number is recorded.
    patch
        Edge of the cubic training patch, in voxels.
    patches
        Patches per step.
    antithetic
        Perturb each patch by +u and −u: the network passes twice, and the noise of the loss's gradient cancels to
        first order. At equal time it gained 0.14 dB where base weights were adapted to few counts.
    objective
        ``"ar-dae"``, ``"dsm"`` or ``"total-unit-noise"``; see :mod:`n2s_med.score.objectives`.
    sigma_a
        Perturbation, in standard deviations of the noise.
    kept_counts
        Of few whole counts no perturbation is learned: the network is shown this share of each and learns the rest
        (:mod:`n2s_med.score.splitting`). 0 perturbs them as other data.
    learning_rate
        Peak learning rate of Muon.
    momentum
        Of Muon.
    channels
        Feature channels per level.
    ema
        Decay of an exponential moving average of the weights; 0 takes the weights themselves.
    held_out
        Fraction of the voxels kept out of the loss, for the clean-free figure; of small volumes more.
    checks
        How often in a run that figure is computed and a checkpoint is written.
    patience
        Checks without improvement before the run stops early.
    seed
        Seed of everything random.
    """

    steps: int = 0
    seconds: float = 120.0
    patch: int = 24
    patches: int = 2
    antithetic: bool = True
    objective: str = "ar-dae"
    sigma_a: float = 0.5
    kept_counts: float = KEPT
    learning_rate: float = 0.02
    momentum: float = 0.9
    channels: tuple[int, ...] = (16, 64, 128)
    ema: float = 0.0
    held_out: float = 0.02
    checks: int = 12
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("seconds", "patch", "patches", "sigma_a", "learning_rate", "checks", "patience"):
            if not 0 < getattr(self, key) < math.inf:
                raise _out_of_range(key, getattr(self, key), "a number above zero")
        for key in ("steps", "seed"):
            if getattr(self, key) < 0:
                raise _out_of_range(key, getattr(self, key), "a number of zero or above")
        for key in ("kept_counts", "momentum", "ema", "held_out"):
            if not 0 <= getattr(self, key) < 1:
                raise _out_of_range(key, getattr(self, key), "a number from 0 up to but without 1")
        if self.objective not in OBJECTIVES:
            raise ConfigurationError(
                f"unknown objective {self.objective!r}", remedy=f"choose one of {', '.join(OBJECTIVES)}"
            )
        if not self.channels or min(self.channels) < 1:
            raise _out_of_range("channels", self.channels, "a list of numbers above zero")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], base: TrainingConfig | None = None) -> TrainingConfig:
        """Build from a mapping; what it leaves out is as in ``base``, or the default.

        Raises
        ------
        ConfigurationError
            For an unknown key (naming the nearest known one) or a value out of range or of another type.
        """
        known = {f.name: f.default for f in fields(cls)}
        checked = {}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ConfigurationError(f"unknown training key {key!r}", remedy=f"did you mean {near!r}?")
            checked[key] = _converted(key, value, known[key])
        return replace(base or cls(), **checked)


ADAPTATION = TrainingConfig(seconds=30, objective="total-unit-noise", learning_rate=0.008, checks=6)
"""How base weights are adapted to a scan: in the form they were trained in, gently, and not for long."""


def _converted(key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``."""
    try:
        if isinstance(default, tuple):
            return tuple(int(v) for v in (value.split(",") if isinstance(value, str) else value))
        if isinstance(default, bool):
            value = {"true": True, "false": False}.get(value, value)
        if isinstance(value, bool) != isinstance(default, bool):
            raise ValueError
        if isinstance(default, int) and int(value) != float(value):
            raise ValueError
        return type(default)(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _out_of_range(key, value, f"a value like {default!r}") from error


def _out_of_range(key: str, value: Any, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"training key {key} takes {wanted}, got {value!r}",
        remedy="correct it on the command line or in the configuration file",
    )

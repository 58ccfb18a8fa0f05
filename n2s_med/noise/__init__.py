"""Noise laws: what the scanner adds, and the formula that takes it off again.

A new law is one new file and one more entry of :data:`LAWS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from n2s_med.errors import ConfigurationError
from n2s_med.noise.base import NoiseModel, Parameter
from n2s_med.noise.gamma import Gamma
from n2s_med.noise.gaussian import Gaussian
from n2s_med.noise.poisson import Poisson
from n2s_med.noise.tweedie import Tweedie

LAWS: Mapping[str, type[NoiseModel]] = MappingProxyType({law.name: law for law in (Gaussian, Poisson, Gamma, Tweedie)})

__all__ = ["LAWS", "Gamma", "Gaussian", "NoiseModel", "Parameter", "Poisson", "Tweedie", "law_named"]


def law_named(name: str, **parameters: Parameter) -> NoiseModel:
    """Build the law called ``name`` from its parameters.

    Raises
    ------
    ConfigurationError
        If there is no such law, or the parameters given are not exactly the law's own.
    """
    if name not in LAWS:
        raise ConfigurationError(f"unknown noise law {name!r}", remedy=f"choose one of {', '.join(LAWS)}")
    wanted = [f.name for f in fields(LAWS[name])]  # type: ignore[arg-type]  # every law is a dataclass
    if sorted(parameters) != sorted(wanted):
        given = ", ".join(f"--{p}" for p in parameters) or "nothing"
        raise ConfigurationError(
            f"the {name} law takes {' and '.join(f'--{w}' for w in wanted)}, but was given {given}",
            remedy="give exactly these, or leave them all out to have them estimated",
        )
    return LAWS[name](**parameters)

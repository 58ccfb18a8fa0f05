"""Every key is checked before anything is computed."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from n2s_med.errors import ConfigurationError
from n2s_med.training import TrainingConfig


def test_defaults_are_allowed_and_documented() -> None:
    config = TrainingConfig.from_mapping({})
    assert config == TrainingConfig()
    for field in fields(config):
        assert f"    {field.name}\n" in (TrainingConfig.__doc__ or "")


def test_values_take_the_type_of_the_key() -> None:
    config = TrainingConfig.from_mapping({"steps": 1e3, "seconds": 60, "channels": [8, 16], "seed": "7"})
    assert config == TrainingConfig(steps=1000, seconds=60.0, channels=(8, 16), seed=7)
    as_words = {"channels": "8,16", "antithetic": "true"}  # as the command line gives them
    assert TrainingConfig.from_mapping(as_words) == TrainingConfig(channels=(8, 16), antithetic=True)
    assert type(config.steps) is int
    assert type(config.seconds) is float


@pytest.mark.parametrize(
    ("key", "near"),
    [("step", "steps"), ("learning-rate", "learning_rate"), ("sigma", "sigma_a"), ("heldout", "held_out")],
)
def test_unknown_key_names_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"unknown training key '{key}'.* '{near}'") as caught:
        TrainingConfig.from_mapping({key: 1})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


BAD: list[tuple[str, Any]] = [
    ("steps", -1),
    ("steps", 1.5),
    ("steps", "many"),
    ("steps", True),
    ("steps", math.inf),
    ("steps", math.nan),
    ("steps", None),
    ("seconds", 0),
    ("seconds", math.nan),
    ("seconds", math.inf),
    ("seconds", "a minute"),
    ("patch", 0),
    ("patches", -2),
    ("sigma_a", 0.0),
    ("sigma_a", math.nan),
    ("learning_rate", -1e-3),
    ("learning_rate", math.inf),
    ("channels", []),
    ("channels", [16, 0]),
    ("channels", 16),
    ("channels", "wide"),
    ("ema", 1.0),
    ("ema", -0.1),
    ("held_out", 1),
    ("held_out", math.nan),
    ("checks", 0),
    ("patience", 0),
    ("seed", -1),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=str)
def test_values_out_of_range_or_type(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"training key {key} .*got") as caught:
        TrainingConfig.from_mapping({key: value})
    assert "\n" not in str(caught.value)

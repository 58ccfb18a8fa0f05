"""What is said of a denoised scan."""

from __future__ import annotations

import pytest

from n2s_med.jobs.outcome import _unadapted
from n2s_med.score import ScoreModel, ScoreUNet


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ({}, None),
        ({"unfit_sure": None, "steps_done": 20}, None),
        ({"unfit_sure": -0.1, "steps_done": 0}, "before adapting"),
        ({"unfit_sure": -0.1, "steps_done": 20}, "while adapting"),
    ],
)
def test_a_model_that_could_not_be_adapted_is_told(card: dict[str, float | None], told: str | None) -> None:
    said = _unadapted(ScoreModel(ScoreUNet(2, (2, 2)), card=card))
    assert bool(said) == bool(told)
    assert all(f"-0.100 noise variances {told}" in sentence for sentence in said)

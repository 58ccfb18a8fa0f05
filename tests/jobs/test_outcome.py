"""What is said of a denoised scan."""

from __future__ import annotations

import pytest

from n2s_med.jobs.outcome import _unadapted
from n2s_med.score import ScoreModel, ScoreUNet


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ({}, False),
        ({"sure_at_start": 0.1, "steps_done": 20}, False),
        ({"sure_at_start": -0.1, "steps_done": 0}, True),
        ({"sure_at_start": -0.1, "steps_done": 20}, False),  # whole counts: split, and adapted all the same
    ],
)
def test_a_model_that_could_not_be_adapted_is_told(card: dict[str, float], told: bool) -> None:
    said = _unadapted(ScoreModel(ScoreUNet(2, (2, 2)), card=card))
    assert bool(said) == told
    assert all("-0.100 noise variances" in sentence for sentence in said)

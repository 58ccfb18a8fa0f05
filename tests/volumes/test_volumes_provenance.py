"""What is told of the denoising: one sentence that fits, and UIDs that depend on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from n2s_med.volumes import Provenance


def test_description_is_one_sentence_in_a_fixed_order():
    one = Provenance("brain", "ab12", "gaussian", {"sigma": 1 / 3, "blend": "exact", "steps": 10}, "0.1.0")
    two = Provenance("brain", "ab12", "gaussian", {"steps": 10, "blend": "exact", "sigma": 1 / 3}, "0.1.0")
    assert one.description() == two.description()
    assert one.description() == (
        "Denoised by n2s-med 0.1.0 (Noise2Score) with model brain (hash ab12) for gaussian noise "
        "(blend=exact, sigma=0.333333333, steps=10)."
    )
    assert one.uid("1.2") == two.uid("1.2")


@settings(max_examples=40, deadline=None)
@given(st.text(), st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.floats(), st.integers())))
def test_description_and_uid_fit_dicom_whatever_the_names(model, law, parameters):
    provenance = Provenance(model, "00", law, parameters, "1")
    text = provenance.description()
    assert len(text) <= 1024
    assert text.isascii()
    assert text.isprintable()
    assert "\\" not in text
    assert len(provenance.uid("1.2.3")) <= 64


@pytest.mark.parametrize("field", ["model_hash", "law", "version"])
def test_uid_depends_on_all_that_makes_the_result(field):
    plain = {"model": "m", "model_hash": "h", "law": "l", "parameters": {"a": 0.1}, "version": "1"}
    uid = Provenance(**plain).uid("1.2")
    assert Provenance(**{**plain, field: "other"}).uid("1.2") != uid
    assert Provenance(**{**plain, "parameters": {"a": 0.1 + 1e-15}}).uid("1.2") != uid
    assert Provenance(**plain).uid("1.3") != uid
    assert Provenance(**{**plain, "model": "another name"}).uid("1.2") == uid

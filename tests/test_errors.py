"""Every refusal is one line that says what, where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from n2s_med import errors
from n2s_med.errors import ConfigurationError, InputError, N2SError, PartialError, UnsupportedError


def test_message_has_place_cause_and_remedy() -> None:
    error = InputError("the file is empty", remedy="copy it again", path=Path("a") / "scan.nii")
    assert str(error) == f"{Path('a') / 'scan.nii'}: the file is empty. Copy it again."
    assert (error.cause, error.remedy, error.path) == (
        "the file is empty",
        "copy it again",
        Path("a/scan.nii"),
    )


def test_place_and_remedy_may_be_missing() -> None:
    assert str(N2SError("it is broken")) == "it is broken"
    assert str(N2SError("it is broken", remedy="mend it")) == "it is broken. Mend it."
    assert str(N2SError("it is broken", path="here")) == "here: it is broken"


def test_a_question_needs_no_full_stop() -> None:
    assert str(N2SError("unknown key", remedy="did you mean 'steps'?")) == "unknown key. Did you mean 'steps'?"


@given(st.text(), st.text(), st.text())
def test_message_is_one_line(cause: str, remedy: str, path: str) -> None:
    assert len(str(N2SError(cause, remedy=remedy, path=path)).splitlines()) <= 1


@pytest.mark.parametrize(
    "name", [n for n, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, N2SError)]
)
def test_tree_at_the_head_of_the_module_is_the_real_one(name: str) -> None:
    kind = getattr(errors, name)
    assert name in (errors.__doc__ or "")
    assert kind.__doc__
    assert kind.exit_code == {ConfigurationError: 2, PartialError: 3}.get(kind, 1)
    assert issubclass(kind, InputError) == (kind in (InputError, UnsupportedError))

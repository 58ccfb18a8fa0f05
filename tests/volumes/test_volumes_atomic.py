"""Whole files and folders: what a killed process leaves is cleared away, what it moved aside comes back."""

from __future__ import annotations

import os

import pytest

from n2s_med.atomic import check_apart, whole
from n2s_med.errors import OutputError

DEAD = 2**22 + 1  # beyond the largest process id of Linux


def write_text(path, text="new", *, overwrite=False):
    with whole(path, overwrite=overwrite) as partial:
        partial.write_text(text)


def test_remains_of_killed_processes_are_cleared_away(tmp_path):
    (tmp_path / f".a.txt.partial-{DEAD}").write_text("half")
    (tmp_path / f".a.txt.partial-{os.getppid()}").write_text("being written")
    (tmp_path / ".a.txt.partial-me").write_text("somebody else's")
    (tmp_path / f".b.txt.partial-{DEAD}").write_text("of another output")
    write_text(tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f".a.txt.partial-{os.getppid()}", ".a.txt.partial-me", f".b.txt.partial-{DEAD}", "a.txt"]
    )


def test_what_a_killed_process_moved_aside_comes_back(tmp_path):
    old = tmp_path / f".out.replaced-{DEAD}"
    old.mkdir()
    (old / "old").touch()
    with pytest.raises(OutputError, match="exists already"), whole(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out" / "old").exists()


def test_failure_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeError):
        write_text(tmp_path / "a", "\udc80", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    write_text(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 300, "nul\0nul"])
def test_names_that_cannot_be_are_said(tmp_path, name):
    with pytest.raises(OutputError):
        write_text(tmp_path / name)


@pytest.mark.parametrize(("target", "words"), [
    ("in", "it is the input or lies inside it"), ("in/a/b", "lies inside it"), (".", "it holds the input"),
    ("link/out", "lies inside it"), ("in/kept/../a", "lies inside it"),
])  # fmt: skip
def test_outputs_in_or_around_the_input(tmp_path, target, words):
    (tmp_path / "in" / "kept").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(OutputError, match=words):
        check_apart(tmp_path / "in", tmp_path / target, spare=tmp_path / "in" / "kept")


@pytest.mark.parametrize("target", ["out", "in2", "in/kept/out"])
def test_outputs_apart_from_the_input(tmp_path, target):
    (tmp_path / "in" / "kept").mkdir(parents=True)
    check_apart(tmp_path / "in", tmp_path / target, spare=tmp_path / "in" / "kept")

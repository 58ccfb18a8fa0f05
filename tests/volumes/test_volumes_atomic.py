"""Whole files and folders: what a killed process leaves is cleared away, what it moved aside comes back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from n2s_med.atomic import beside, check_apart, tidy_below, whole
from n2s_med.errors import OutputError

DEAD = 2**22 + 1  # beyond the largest process id of Linux


def write_text(path, text="new", *, overwrite=False):
    with whole(path, overwrite=overwrite) as partial:
        partial.write_text(text)


def of_another_machine(path, kind):
    return path.with_name(f".{path.name}.{kind}-{DEAD}-0123abcd")


def test_remains_of_killed_processes_are_cleared_away(tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    beside(a, "partial", DEAD).write_text("half")
    stay = [beside(a, "partial", os.getppid()), of_another_machine(a, "partial"), beside(b, "partial", DEAD)]
    stay.append(tmp_path / ".a.txt.partial-me")
    for path in stay:
        path.write_text("being written, or of another output")
    write_text(a)
    assert sorted(tmp_path.iterdir()) == sorted([*stay, a])


def test_what_a_killed_process_moved_aside_comes_back(tmp_path):
    old = beside(tmp_path / "out", "replaced", DEAD)
    old.mkdir()
    (old / "old").touch()
    with pytest.raises(OutputError, match="exists already"), whole(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out" / "old").exists()


def test_a_whole_tree_is_cleared_of_what_other_machines_left_too(tmp_path):
    (tmp_path / "deep").mkdir()
    a, b = tmp_path / "a.txt", tmp_path / "deep" / "b.txt"
    of_another_machine(a, "partial").write_text("half")
    beside(a, "partial", os.getppid()).write_text("being written")
    of_another_machine(b, "replaced").write_text("old")
    tidy_below(tmp_path)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        beside(a, "partial", os.getppid()), b,
    ]  # fmt: skip
    assert b.read_text() == "old"


WRITER = """
import sys
from pathlib import Path
from n2s_med.atomic import whole
for turn in range(15):
    with whole(Path(sys.argv[1]), overwrite=True) as partial:
        partial.mkdir()
        for name in "abc":
            (partial / name).write_text(f"{sys.argv[2]} {turn}")
"""


def test_processes_that_replace_one_folder_all_the_time(tmp_path):
    """None of them fails, and what is there in the end is all of one of them."""
    out = tmp_path / "out"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, out, f"{n}"], stderr=subprocess.PIPE) for n in range(3)]
    told = [writer.communicate(timeout=300)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], told
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len({path.read_text() for path in out.iterdir()}) == 1
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "c"]


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

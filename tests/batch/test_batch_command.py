"""The batch command: what it plans, mirrors, skips, tries again and tells."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from batch_scans import OPTIONS, content, images, series, tree
from job_scans import SECRETS, Ran, Run, carried, datasets, files_below, nifti, noisy, values_of

from n2s_med.atomic import beside
from n2s_med.batch import Manifest, Record, State, known
from n2s_med.errors import OutputError
from n2s_med.jobs.denoise import DenoiseJob

pytestmark = pytest.mark.usefixtures("identity")


def batch(run: Run, source: Path, out: Path, *options: object) -> Ran:
    return run("batch", source, out, *OPTIONS, *options)


def states(out: Path) -> dict[str, str]:
    return {record.source: str(record.state) for record in known(out).values()}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the results that were worked on."""
    seen: list[str] = []
    one = DenoiseJob.one

    def note(self: DenoiseJob, volume: object, target: Path, *rest: object) -> object:
        seen.append(target.name)
        return one(self, volume, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DenoiseJob, "one", note)
    return seen


# -- planning and mirroring ----------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_does_nothing(run: Run, tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (source / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 40)
    done = batch(run, source, tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert not (tmp_path / "out").exists()
    lines = done.out.splitlines()
    assert "denoise: deep/er/a.nii (NIfTI) -> deep/er/a.nii" in lines
    assert "denoise: pat/pet (PT series 1, 4 slices of 8x8) -> pat/pet" in lines
    assert any(line.startswith("left out: damaged.dcm (DICOM") for line in lines)
    assert len(lines) == 6


def test_the_tree_is_mirrored(run: Run, tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    assert batch(run, source, tmp_path / "out").code == 0
    folder = "mixed/PT-series-1-3-slices-of-8x8"
    expected = ["deep/er/a.nii", "deep/er/b.nii", "mixed/x.nii.gz"]
    expected += [f"{folder}/{n:05d}.dcm" for n in range(1, 4)] + [f"pat/pet/{n:05d}.dcm" for n in range(1, 5)]
    assert sorted(content(tmp_path / "out")) == sorted(expected)
    for name in ("deep/er/a.nii", "mixed/x.nii.gz"):
        assert (values_of(tmp_path / "out" / name) == values_of(source / name)).all()
    assert set(states(tmp_path / "out").values()) == {"done"}


def test_a_series_spread_over_folders_is_one(run: Run, tmp_path: Path) -> None:
    whole = series(tmp_path / "whole")
    for number, file in enumerate(sorted(whole.iterdir())):
        (tmp_path / "in" / "pat" / f"part{number % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "in" / "pat" / f"part{number % 2}")
    assert batch(run, tmp_path / "in", tmp_path / "out").code == 0
    assert states(tmp_path / "out") == {"pat": "done"}
    assert len(datasets(tmp_path / "out" / "pat")) == 4


def test_names_that_would_collide_are_told_apart(run: Run, tmp_path: Path) -> None:
    """All that is written for a result begins with its stem: no two may share one."""
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.nii", "a.nii.gz", "a.sd.nii", "b.nii"):
        nifti(source / name, noisy(shape=(8, 8, 8)))
    assert batch(run, source, tmp_path / "out").code == 0
    names = sorted(content(tmp_path / "out"))
    assert len(names) == 4
    assert "b.nii" in names
    assert not {"a.nii", "a.nii.gz", "a.sd.nii"} & set(names)


def test_a_series_added_to_a_folder_that_was_one_result(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    series(source / "pat")
    assert batch(run, source, out).code == 0
    before = content(out)
    nifti(source / "pat" / "new.nii", noisy(shape=(8, 8, 8)))
    done = batch(run, source, out)
    assert done.code == 3
    assert "inside another result" in done.err
    assert content(out) == before


@pytest.mark.parametrize("where", ["in", "in/out", "."])
def test_folders_in_each_other(run: Run, tmp_path: Path, where: str) -> None:
    images(tmp_path / "in")
    done = batch(run, tmp_path / "in", tmp_path / where)
    assert done.code == 1
    assert "Choose a place outside it" in done.error
    assert files_below(tmp_path) == ["in/a.nii", "in/b.nii", "in/c.nii"]


def test_nothing_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "no NIfTI image and no DICOM" in batch(run, tmp_path / "in", tmp_path / "out").error
    assert "no such folder" in batch(run, tmp_path / "absent", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


def test_json_and_gradients_beside_an_image_go_along(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", "ab"), tmp_path / "out"
    (source / "a.json").write_text('{"Modality": "MR", "EchoTime": 0.002}')
    (source / "a.bval").write_text("0 1000\n")
    assert batch(run, source, out).code == 0
    assert json.loads((out / "a.json").read_text()) == {
        "Modality": "MR", "EchoTime": 0.002, "Description": "Denoised by n2s-med", "Sources": ["a.nii"],
    }  # fmt: skip
    assert (out / "a.bval").read_text() == "0 1000\n"
    assert not (out / "b.json").exists()
    (source / "a.json").write_text('{"Modality": "CT"}')
    assert batch(run, source, out).code == 3  # it is another result now
    assert states(out) == {"a.nii": "exists", "b.nii": "done"}


def test_json_beside_an_image_is_not_written_over_what_is_not_ours(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", "ab"), tmp_path / "out"
    for folder in (source, out):
        folder.mkdir(exist_ok=True)
        (folder / "a.json").write_text("{}")
    assert batch(run, source, out).code == 3
    assert (out / "a.json").read_text() == "{}"
    assert states(out) == {"a.nii": "exists", "b.nii": "done"}


def test_damaged_json_beside_an_image_fails_it_alone(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", "ab"), tmp_path / "out"
    (source / "a.json").write_text("{")
    done = batch(run, source, out)
    assert done.code == 3
    assert "failed: a.nii (NIfTI): no readable JSON" in done.err
    assert states(out) == {"a.nii": "failed", "b.nii": "done"}


# -- resuming ------------------------------------------------------------------------------------------


def test_finished_scans_are_skipped(run: Run, tmp_path: Path, counted: list[str]) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    assert batch(run, source, out).code == 0
    assert counted == ["a.nii", "b.nii", "c.nii"]
    before = content(out)
    done = batch(run, source, out)
    assert done.code == 0
    assert re.search(r"^done +3$", done.out, re.MULTILINE)
    assert len(counted) == 3
    images(source, "d")
    assert batch(run, source, out).code == 0
    assert counted[3:] == ["d.nii"]
    (out / "b.nii").unlink()
    assert batch(run, source, out).code == 0
    assert counted[4:] == ["b.nii"]
    assert before.items() <= content(out).items()


def test_a_result_that_is_gone_is_made_again_though_its_sd_map_is_there(
    run: Run, tmp_path: Path, counted: list[str]
) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    assert batch(run, source, out).code == 0
    (out / "b.nii").unlink()
    (out / "b.sd.nii.gz").write_text("its SD map")
    assert batch(run, source, out).code == 0
    assert counted[3:] == ["b.nii"]


def test_a_file_that_was_only_touched_is_unchanged(run: Run, tmp_path: Path, counted: list[str]) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    batch(run, source, out)
    os.utime(source / "a.nii", ns=(1, 1))
    assert batch(run, source, out).code == 0
    assert len(counted) == 3


@pytest.mark.parametrize("change", ["input", "options"])
def test_what_changed_replaces_no_result_unasked(run: Run, tmp_path: Path, counted: list[str], change: str) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    batch(run, source, out)
    before = content(out)
    extra = ("--seed", 5) if change == "options" else ()
    if change == "input":
        nifti(source / "a.nii", noisy(shape=(8, 8, 8), seed=999))
    changed = 3 if extra else 1
    done = batch(run, source, out, *extra)
    assert done.code == (1 if extra else 3)
    assert done.err.count("--overwrite") == changed
    assert content(out) == before
    assert len(counted) == 3
    assert batch(run, source, out, *extra, "--overwrite").code == 0
    assert len(counted) == 3 + changed
    assert batch(run, source, out, *extra).code == 0
    assert len(counted) == 3 + changed


def test_refused_replacements_do_not_forget_what_was_finished(run: Run, tmp_path: Path, counted: list[str]) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    batch(run, source, out)
    assert batch(run, source, out, "--seed", 5).code == 1
    assert batch(run, source, out).code == 0
    assert len(counted) == 3
    assert set(states(out).values()) == {"done"}


def test_what_is_not_ours_is_never_replaced_unasked(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "b.nii").write_text("precious")
    for _ in range(2):
        done = batch(run, source, out)
        assert done.code == 3
        assert (out / "b.nii").read_text() == "precious"
        assert states(out) == {"a.nii": "done", "b.nii": "exists", "c.nii": "done"}
    assert batch(run, source, out, "--overwrite").code == 0
    assert states(out)["b.nii"] == "done"


def test_what_a_killed_run_left_is_replaced(run: Run, tmp_path: Path, counted: list[str]) -> None:
    """The last line says that it was begun: whatever lies in its place is of that attempt."""
    source, out = images(tmp_path / "in"), tmp_path / "out"
    batch(run, source, out)
    lines = (out / "batch.jsonl").read_bytes().splitlines(keepends=True)
    begun = lines[1].replace(b'"done"', b'"begun"')
    (out / "batch.jsonl").write_bytes(b"".join([lines[0], begun, lines[2][:40]]))
    (out / "c.nii").unlink()
    (out / "b.nii").write_text("half")
    (out / "deep").mkdir()
    for path in (out / "b.nii", out / "deep" / "gone.nii"):
        beside(path, "partial", 4194304).write_text("half")
    assert batch(run, source, out).code == 0
    assert counted[3:] == ["b.nii", "c.nii"]
    assert sorted(name for name in files_below(out) if "report" not in name) == [
        "a.nii",
        "b.nii",
        "batch.jsonl",
        "c.nii",
    ]


def test_the_identity_is_taken_out(run: Run, tmp_path: Path, counted: list[str]) -> None:
    """Another key is another option: it replaces no result unasked."""
    pytest.importorskip("dicomanonymizer", reason="dicom-anonymizer is not installed")
    series(tmp_path / "in" / "pet")
    keys = [tmp_path / name for name in ("one.key", "two.key")]
    for key in keys:
        key.write_text(f"secret of {key.name}, long enough")
    for key, code in ((keys[0], 0), (keys[0], 0), (keys[1], 1)):
        assert batch(run, tmp_path / "in", tmp_path / "out", "--deidentify", key).code == code
    assert counted == ["pet"]
    images = datasets(tmp_path / "out" / "pet")
    assert {image.PatientIdentityRemoved for image in images} == {"YES"}
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [secret for secret in (*SECRETS, keys[0].read_text()) if secret.encode() in content] == []


# -- failures ------------------------------------------------------------------------------------------


def test_one_bad_scan_is_one_line_and_the_rest_goes_on(run: Run, tmp_path: Path, counted: list[str]) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    good = (source / "b.nii").read_bytes()
    (source / "b.nii").write_bytes(good[:500])
    done = batch(run, source, out)
    assert done.code == 3
    assert "1 of 3 scans failed" in done.error
    (line,) = (line for line in done.err.splitlines() if line.startswith("failed: b.nii"))
    assert "more than its 500 bytes can hold" in line
    assert states(out) == {"a.nii": "done", "b.nii": "failed", "c.nii": "done"}
    assert batch(run, source, out).code == 3
    (source / "b.nii").write_bytes(good)
    assert batch(run, source, out).code == 0
    assert counted == ["a.nii", "c.nii", "b.nii"]


def test_all_failed(run: Run, tmp_path: Path) -> None:
    source = images(tmp_path / "in")
    for file in source.iterdir():
        file.write_bytes(b"no image")
    done = batch(run, source, tmp_path / "out")
    assert done.code == 1
    assert "3 of 3 scans failed" in done.error


def test_our_own_mistakes_fail_their_scan_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named without their text, which may quote the file."""
    one = DenoiseJob.one

    def fail(self: DenoiseJob, volume: object, target: Path, *rest: object) -> object:
        if target.name == "b.nii":
            raise ZeroDivisionError("Doe^Jane")
        return one(self, volume, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DenoiseJob, "one", fail)
    done = batch(run, images(tmp_path / "in"), tmp_path / "out")
    assert done.code == 3
    assert "unexpected ZeroDivisionError at test_batch_command.py:" in done.err
    assert "Doe" not in done.err + (tmp_path / "out" / "batch.jsonl").read_text()


def test_warnings_and_strictness(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    done = batch(run, source, out)
    assert done.err.count("look here") == 3
    assert "trust     2 of 3 passed all checks" in done.out
    assert batch(run, source, out, "--strict").code == 4


# -- the manifest --------------------------------------------------------------------------------------


def test_one_line_per_scan_without_patient_data(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    series(source / "pet")
    carried("CT_small.dcm", source / "ct")
    carried("MR_truncated.dcm", source / "mr")
    done = batch(run, source, out)
    assert done.code == 3
    text = (out / "batch.jsonl").read_text()
    assert [secret for secret in SECRETS if secret in text + done.out + done.err] == []
    assert str(tmp_path) not in text
    uids = [datasets(folder)[0].SeriesInstanceUID for folder in (source / "pet", source / "ct")]
    assert not any(uid in text for uid in uids)
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 3
    by_source = {line["source"]: line for line in lines}
    ct = by_source["ct/CT_small.dcm"]
    assert set(ct) == {field.name for field in fields(Record)}
    assert (ct["state"], ct["output"], ct["files"], ct["attempts"]) == ("done", "ct", 1, 1)
    assert re.fullmatch("[0-9a-f]{64}", ct["inputs_sha256"])
    assert by_source["pet"]["failed_checks"] == []
    failed = by_source["mr/MR_truncated.dcm"]
    assert failed["state"] == "failed"
    assert failed["reason"]


def test_one_batch_at_a_time(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    with Manifest(out):
        assert "another batch is writing here" in batch(run, source, out).error
    assert batch(run, source, out).code == 0


def test_a_manifest_of_something_else(run: Run, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "batch.jsonl").write_text('{"a": 1}\n')
    assert "line 1 is not of a manifest" in batch(run, source, out).error
    assert (out / "batch.jsonl").read_text() == '{"a": 1}\n'


def test_a_line_cut_off_is_dropped(tmp_path: Path) -> None:
    first, second = (Record(key, State.DONE, "scan", f"{key}.nii") for key in "ab")
    with Manifest(tmp_path) as manifest:
        manifest.add(first)
    path = tmp_path / "batch.jsonl"
    path.write_bytes(path.read_bytes() + second.line()[:-1])
    with Manifest(tmp_path) as manifest:
        assert manifest.records == {"a": first}
        manifest.add(second)
    assert known(tmp_path) == {"a": first, "b": second}
    path.write_bytes(b"{\n" + path.read_bytes())
    with pytest.raises(OutputError, match="line 1"):
        known(tmp_path)


def test_names_that_are_no_text_take_one_line_each(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in (b"line\nfailed: all.nii", b"latin-\xe4.nii"):
        nifti(source / "scan.nii", noisy(shape=(8, 8, 8))).rename(Path(os.fsdecode(os.fsencode(source) + b"/" + name)))
    planned = batch(run, source, tmp_path / "out", "--dry-run")
    assert [line.partition(" (")[0] for line in planned.out.splitlines()] == [
        r"denoise: latin-\udce4.nii", r"denoise: line\nfailed: all.nii",
    ]  # fmt: skip
    done = batch(run, source, tmp_path / "out")
    assert done.code == 0
    assert not any(line.startswith("failed") for line in done.err.splitlines())
    assert sorted(os.fsencode(path.name) for path in (tmp_path / "out").iterdir()) == [
        b"batch.jsonl",
        b"latin-\xe4.nii",
        b"line\nfailed: all.nii",
    ]


def test_a_disk_that_is_full_ends_the_batch_and_spoils_no_manifest(tmp_path: Path) -> None:
    """The system lets no file grow beyond a size, as a full disk does not."""
    first, second = (Record(key, State.DONE, "scan", f"{key}.nii") for key in "ab")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Manifest(tmp_path) as manifest:
        manifest.add(first)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(first.line()) + 10, before[1]))
        try:
            with pytest.raises(OutputError, match="cannot write it"):
                manifest.add(second)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        left = manifest.path.read_bytes()
    assert left == first.line() + second.line()[:10]
    manifest.path.write_bytes(left)  # as where it cannot be written anew either
    with Manifest(tmp_path) as manifest:
        assert manifest.records == {"a": first}
        manifest.add(second)
    assert known(tmp_path) == {"a": first, "b": second}

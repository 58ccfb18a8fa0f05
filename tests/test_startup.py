"""What a command imports before it works: nothing that takes seconds where it is not needed.

The sets are held, not the times: those are in ``benchmarks/startup.py``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from job_scans import pet_series

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

TELL = """
import sys
before = set(sys.modules)
from n2s_med.cli import main
try:
    main()
finally:
    print("\\n".join(sorted(set(sys.modules) - before)), file=sys.stderr)
"""
"""Runs a command and says on stderr which modules it imported."""

LIGHT = {"numpy", "nibabel", "isal", "pydicom", "pylibjpeg", "libjpeg", "openjpeg", "scipy", "tqdm"}
"""What ``inspect`` may import of the declared dependencies: pydicom looks for its decoders and has tqdm, nibabel looks
for the mere package scipy."""

BELOW_INSPECT = {"atomic", "cli", "errors", "interrupts", "jobs", "jobs.inspect", "modalities", "options", "volumes"}


def imported(*arguments: object) -> set[str]:
    """The modules that a command imports, by full name, in a process of its own."""
    command = [sys.executable, "-c", TELL, *map(str, arguments)]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stderr.split())


def declared(modules: set[str]) -> set[str]:
    """Those of ``modules`` that belong to dependencies of this package, by the name that is imported."""
    requirements = metadata.requires("n2s-med") or ()
    names = {match[0].lower() for line in requirements if (match := re.match(r"[A-Za-z0-9._-]+", line))}
    tops = {module.partition(".")[0] for module in modules}
    owners = metadata.packages_distributions()
    return {top for top in tops if {owner.lower() for owner in owners.get(top, ())} & names}


def own(modules: set[str]) -> set[str]:
    """Those of ``modules`` that are this package's."""
    return {module.removeprefix("n2s_med.") for module in modules if module.startswith("n2s_med.")}


@pytest.mark.parametrize("arguments", [["--help"], ["denoise", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_the_command_line_alone(arguments: list[str]) -> None:
    modules = imported(*arguments)
    assert own(modules) == {"cli", "errors", "interrupts", "options"}
    assert declared(modules) == set()


def test_inspect_waits_for_none_of_the_slow_imports(tmp_path: Path) -> None:
    pet_series(tmp_path / "pet")
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "scan.nii.gz")
    modules = imported("inspect", tmp_path)
    found = declared(modules)
    assert {"numpy", "nibabel", "pydicom"} <= found <= LIGHT
    assert {module for module in own(modules) if not module.startswith("volumes.")} == BELOW_INSPECT
    assert "scipy.ndimage" not in modules
    assert "volumes.monai_io" not in own(modules)


def test_denoising_does_without_monai(tmp_path: Path) -> None:
    pet_series(tmp_path / "pet")
    modules = imported("denoise", tmp_path / "pet", tmp_path / "out", "--adapt", "0", "--quiet")
    assert (tmp_path / "out.report.html").is_file()
    assert not declared(modules) & {"mlflow", "monai"}


def test_what_is_imported_is_not_looked_through_for_garbage() -> None:
    """Twice: the second time there is nothing to import, and what has come since is not kept."""
    code = """
import gc
from n2s_med.options import importing
with importing():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
kept = gc.get_freeze_count()
assert kept > 10_000
made = [[] for _ in range(1_000)]
with importing():
    assert gc.isenabled()
assert gc.get_freeze_count() == kept
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_benchmark_measures_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import startup

    measured = {start.command: start for start in startup.starts(repeats=1, imports=3)}
    assert set(measured) == {"n2s-med --help", "n2s-med inspect"}
    assert measured["n2s-med inspect"].ratio > measured["n2s-med --help"].ratio > 0
    for start in measured.values():
        shares = [share for _, share in start.imports]
        assert len(shares) == 3
        assert sorted(shares, reverse=True) == shares
        assert 0 < sum(shares) < 1

"""Trees of small scans, and jobs that do no work, or die at it."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from job_scans import DOE, TINY, nifti, noisy
from monai.data import MetaTensor

from n2s_med.atomic import beside
from n2s_med.jobs.denoise import DenoiseJob, Result
from n2s_med.phantoms import write_pet_series
from n2s_med.report import Verdict
from n2s_med.volumes import Provenance, write

OPTIONS = ("--threads", "1", "--precision", "fp32", "--quiet", "--from-scratch", *TINY, "--orientations", "1")
EPOCH = "1700000000"
REPORTS = (".report.html", ".report.json")


@dataclass(frozen=True)
class Identity(DenoiseJob):
    """Writes each scan as it is."""

    def one(self, volume: MetaTensor, target: Path, model: Any, say: Any) -> Result:
        del model
        provenance = Provenance("none", "00", "gaussian", {}, "0", self.deidentifier)
        write(volume, target, provenance=provenance, overwrite=self.overwrite)
        say("written")
        check = Verdict("residual mean", 0.0, -1.0, 1.0, "b" not in target.name, "Holds.")
        return Result(target, None, target, volume.meta["label"], "gaussian", [check], ["look here"])


@dataclass(frozen=True)
class Deadly(Identity):
    """Kills its process in the middle of writing: the first time that it meets ``victim``, or always."""

    victim: str = "b.nii"
    mark: Path | None = None

    def one(self, volume: MetaTensor, target: Path, model: Any, say: Any) -> Result:
        if target.name == self.victim and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            beside(target, "partial").write_text("half")
            self.die()
        return super().one(volume, target, model, say)

    def die(self) -> None:
        """As the system kills."""
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Hungry(Deadly):
    """Takes memory in the middle of writing until it is ended for that."""

    most_mib: int = 4096

    def die(self) -> None:
        """As who takes too much."""
        taken = []
        while len(taken) * 64 < self.most_mib:
            taken.append(np.ones(64 << 20, dtype=np.uint8))
            time.sleep(0.1)
        time.sleep(60)


@dataclass(frozen=True)
class Greedy(Identity):
    """Wants more memory for ``victim`` than its process may have: the first time, or always."""

    victim: str = "b.nii"
    mark: Path | None = None
    more_mib: int = 64

    def one(self, volume: MetaTensor, target: Path, model: Any, say: Any) -> Result:
        if target.name == self.victim and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (held + (self.more_mib << 20), limits[1]))
            try:
                np.ones(2 * self.more_mib << 20, dtype=np.uint8)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
        return super().one(volume, target, model, say)


@dataclass(frozen=True)
class Slow(Identity):
    """Takes a moment, with something half-written."""

    def one(self, volume: MetaTensor, target: Path, model: Any, say: Any) -> Result:
        from n2s_med.atomic import whole

        with whole(target.with_name("slow.txt"), overwrite=True) as partial:
            partial.write_text("half")
            time.sleep(60)
        return super().one(volume, target, model, say)


@dataclass(frozen=True)
class Watched(Identity):
    """Leaves a mark each time that it begins a scan; the first at ``victim`` stops, half-written, until told to go."""

    victim: str = "b.nii"
    marks: Path = Path()

    def one(self, volume: MetaTensor, target: Path, model: Any, say: Any) -> Result:
        first = not self.begun()[target.name]
        (self.marks / f"{target.name}@{time.time_ns()}").touch()
        if target.name == self.victim and first:
            beside(target, "partial").write_text("half")
            wait_for(lambda: (self.marks / "go").exists())
        done = super().one(volume, target, model, say)
        (self.marks / f"ended-{time.time_ns()}").touch()
        return done

    def begun(self) -> Counter[str]:
        """How often each scan was begun."""
        return Counter(mark.name.partition("@")[0] for mark in self.marks.glob("*@*"))

    def ended(self) -> int:
        """How many attempts were written."""
        return len(list(self.marks.glob("ended-*")))


def wait_for(true: Callable[[], bool], deadline_s: float = 400.0) -> None:
    """Wait until something is true; machines may be busy with other work."""
    deadline = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def images(folder: Path, names: str = "abc") -> Path:
    """A folder of NIfTI images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        nifti(folder / f"{name}.nii", noisy(shape=(8, 8, 8), seed=ord(name)))
    return folder


def series(folder: Path, slices: int = 4) -> Path:
    """A PET series of an invented patient."""
    counts = torch.poisson(torch.full((8, 8, slices), 90.0), generator=torch.Generator().manual_seed(slices))
    write_pet_series(counts, folder, spacing_mm=(4.0, 4.0, 4.0), gain=1.0)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        for keyword, value in DOE.items():
            setattr(dataset, keyword, value)
        dataset.save_as(file)
    return folder


def tree(folder: Path) -> Path:
    """DICOM and NIfTI at several depths, and what is neither."""
    images(folder / "deep" / "er", "ab")
    series(folder / "pat" / "pet")
    series(folder / "mixed", slices=3)
    nifti(folder / "mixed" / "x.nii.gz", noisy(shape=(8, 8, 8)))
    (folder / "notes.txt").write_text("no image")
    return folder


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder but manifests and reports, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((*REPORTS, "batch.jsonl"))
    }

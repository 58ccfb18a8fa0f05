"""What becomes of a series that is written back unchanged, as other programs see it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import n2s_med
from n2s_med.volumes import Provenance, write
from n2s_med.volumes import read as read_ours
from readers.comparison import short
from readers.truth import Floats


def written(name: str, path: Path, work: Path) -> Iterator[str]:
    """Yield a row for each volume of ``path``: what becomes of it when it is written unchanged."""
    for index, volume in enumerate(read_ours(path).volumes):
        out = work / f"{index}"
        provenance = Provenance("identity", "00", "none", {}, n2s_med.__version__)
        write(volume, out, provenance=provenance)
        again = read_ours(out).volumes[0]
        sources = dict.fromkeys(Path(source) for source in volume.meta["source"])
        error = float((again - volume).abs().max() / volume.abs().max() * 100)
        cells = [name, f"{short(error)} %", _new_errors(list(sources), sorted(out.iterdir())),
                 _cross_check([*sources, *out.iterdir()], list(sources)), _dcm2niix(out, again, work)]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
        shutil.rmtree(out)


def _new_errors(sources: Sequence[Path], derived: Sequence[Path]) -> str:
    """Return the errors of derived files that their sources lack; to name a source's bad UID is not a new one."""
    known, found = (_errors([files[0], files[len(files) // 2], files[-1]]) for files in (sources, derived))
    values = {value for error in known for value in re.findall(r"= <[^>]+>", error)}
    new = [error for error in found - known if not values & set(re.findall(r"= <[^>]+>", error))]
    return f"**{len(new)}**" if new else "none"


def _errors(files: Sequence[Path]) -> set[str]:
    found = set()
    for file in files:
        done = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, errors="replace", check=False)
        found |= {re.sub(r"[\d.]+", "#", line) for line in done.stderr.splitlines() if line.startswith("Error")}
    return found


def _cross_check(together: Sequence[Path], alone: Sequence[Path]) -> str:
    statuses = [
        subprocess.run(["dcentvfy", *f], capture_output=True, check=False).returncode for f in (alone, together)
    ]
    return "clean" if statuses[1] == 0 else "as the source" if statuses[0] == statuses[1] else "**errors**"


def _dcm2niix(folder: Path, volume: Any, work: Path) -> str:
    """Return how far dcm2niix puts the corners of the derived series from where this package does."""
    target = work / "nifti"
    target.mkdir()
    subprocess.run(["dcm2niix", "-z", "n", "-f", "%s_%e", "-o", target, folder], capture_output=True, check=False)
    found = [nib.load(file) for file in sorted(target.glob("*.nii"))]
    shape = sorted(volume.shape[1:])
    same = [image for image in found if sorted(image.shape[:3] + (1,) * (3 - image.ndim)) == shape]
    result = "does not read it"
    if same:
        distances = [_apart(image, volume) for image in same]
        result = f"{short(min(distances))} mm"
    elif found:
        result = "another shape"
    shutil.rmtree(target)
    return result


def _apart(image: Any, volume: Any) -> float:
    """Return the largest distance between the corners of two volumes, whatever their axes' order and sense."""
    corners = [_corners(image.affine, image.shape[:3]), _corners(volume.affine.numpy(), tuple(volume.shape[1:]))]
    distances = np.linalg.norm(corners[0][:, None] - corners[1][None], axis=2)
    return float(distances.min(axis=1).max())


def _corners(affine: Floats, shape: Sequence[int]) -> Floats:
    ends = np.array([(*np.multiply(corner, np.subtract(shape, 1)), 1) for corner in np.ndindex(2, 2, 2)])
    corners: Floats = (affine @ ends.T)[:3].T
    return corners

"""Run the walk-through of ``docs/bundles.md`` on real scans and put its time and memory into the page.

    N2S_DATA=/path/to/data python benchmarks/bundles.py

Every command is run as the page prints it, from the bundle's folder, one thread, a process each. Time is that of the
process; ratio: to the time of the CT scan's, so that it compares between machines.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PAGE = Path("docs/bundles.md")
BEGIN, END = "<!-- walk -->", "<!-- /walk -->"
RUN = "python -m monai.bundle run --config_file"
SCANS = {
    "CT": ("ct_gaussian", "nifti_small/totalsegmentator/example_ct_sm.nii.gz"),
    "PET": ("pet_poisson", "ibsi_sts002_cropped/dicom/*PET*"),
    "MR": ("mr_gaussian", "nifti_small/dipy/S0_10slices.nii.gz"),
    "US": ("us_gamma", "ultrasound/pydicom-data/JPGLosslessP14SV1_1s_1f_8b.dcm"),
}
TRAINING = "--epochs 1 --steps_per_epoch 20"
EVALUATION = "\"['configs/train.json','configs/evaluate.json']\""
STEPS = {
    "inference": f"{RUN} configs/inference.json --dataset_dir SCAN --output_dir OUT --flips false",
    "train": f"{RUN} configs/train.json --dataset_dir SCAN --ckpt_dir OUT/models {TRAINING}",
    "evaluate": f"{RUN} {EVALUATION} --dataset_dir SCAN --output_dir OUT --flips false",
}


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    seconds: float
    mib: float


def main() -> None:
    """Run every command and rewrite the page's part between its markers."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    data = os.environ.get("N2S_DATA")
    if not data:
        sys.exit("N2S_DATA names no folder of real scans")
    blocks, rows, unit = [], [], None
    for modality, (bundle, scan) in SCANS.items():
        with tempfile.TemporaryDirectory() as work:
            shutil.copytree(Path("bundles") / bundle, Path(work) / bundle)
            taken = {name: _run(line, Path(work) / bundle, f"{data}/{scan}") for name, line in STEPS.items()}
            report = json.loads(next((Path(work) / bundle / "OUT").glob("*.report.json")).read_text(encoding="utf-8"))
        unit = unit or taken["inference"].seconds
        figures = report["figures"]
        cells = [modality, f"{figures['resources']['voxels']:,}", figures["noise"]["law"]]
        cells += [f"{t.seconds:.0f} s, ×{t.seconds / unit:.1f}, {t.mib / 1024:.1f} GiB" for t in taken.values()]
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
        lines = [line.replace("SCAN", f'"$N2S_DATA/{scan}"') for line in STEPS.values()]
        blocks += [f"{modality}:", "", "```sh", f"cd bundles/{bundle}", *lines, "```", ""]
    head = "| | voxels | law found | " + " | ".join(STEPS) + " |"
    table = [head, "|" + "---|" * (head.count("|") - 1), *rows]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join([before + BEGIN, *blocks, *table, END]) + rest.split(END)[1]
    PAGE.write_text(text, encoding="utf-8")


def _run(line: str, folder: Path, scan: str) -> Taken:
    """Run a line of the page from a folder."""
    line = line.replace("SCAN", shlex.quote(scan)).replace("python", shlex.quote(sys.executable), 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(line, shell=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {line}")
    return Taken(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()

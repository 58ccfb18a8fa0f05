"""Read every DICOM series of a folder with this package and with others, and write what comes out wrong.

    N2S_DATA=/path/to/data python benchmarks/dicom_table.py [--out docs/dicom.md]

Everything in the page from the heading of the first table on is written anew.

The right answer comes from the headers and pixels of each file alone, without any of the readers: ``readers/truth.py``.
A second table says what becomes of each series that is written back unchanged.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk
from readers.comparison import outcome
from readers.libraries import READERS
from readers.made import MADE, make
from readers.truth import dicom_files, truths
from readers.written import written

SERIES = {  # folder or file: the number of volumes that it holds
    "pet/dicom_ge_discoveryst_sts001": 1,
    "ibsi_sts002_cropped/dicom/PET": 1,
    "ibsi_sts002_cropped/dicom/CT": 1,
    "ibsi_sts002_cropped/dicom/MR_T1": 1,
    "ct/dicom_philips_ingenuity_phantom_5mm": 1,
    "ct/dicom_ge_hispeed_variable_tilt_spacing": 2,
    "ct/dicom_philips_ingenuity_phantom_localizer_and_summary": 0,
    "mr/dicom_siemens_avanto_t2_sts001": 1,
    "mr/dicom_ge_signa_breast_sagittal": 1,
    "mr/dicom_ge_architect_fmri_4d_classic": 3,
    "mr/dicom_uih_umr770_dti_mosaic": 0,
    "mr/dicom_siemens_trio_transfer_syntaxes": 0,
    "enhanced/mr_siemens_vida_xa10_fmri": 4,
    "enhanced/mr_philips_elition_pcasl_real": 1,
    "enhanced/ct_multiframe_supplemental_pydicom": 1,
    "enhanced/ct_multiframe_tiny_dcmqi": 1,
    "compressed/pydicom/CT_small.dcm": 1,
    "compressed/pydicom/J2K_pixelrep_mismatch.dcm": 1,
    "compressed/pydicom/MR_small.dcm": 1,
    "compressed/pydicom/MR_small_RLE.dcm": 1,
    "compressed/pydicom/MR_small_bigendian.dcm": 1,
    "compressed/pydicom/MR_small_implicit.dcm": 1,
    "compressed/pydicom/MR_small_jp2klossless.dcm": 1,
    "compressed/pydicom/MR_small_jpeg_ls_lossless.dcm": 1,
    "compressed/pydicom/MR_truncated.dcm": 0,
    "compressed/pydicom/JPEG-lossy.dcm": 0,
    "compressed/pydicom/image_dfl.dcm": 0,
    "compressed/pydicom/rtdose.dcm": 0,
    "compressed/pydicom-data/bad_sequence.dcm": 1,
    "compressed/pydicom-data/explicit_VR-UN.dcm": 1,
    "compressed/pydicom-data/emri_small.dcm": 0,
    "compressed/pydicom-data/emri_small_RLE.dcm": 0,
    "compressed/pydicom-data/emri_small_big_endian.dcm": 0,
    "compressed/pydicom-data/emri_small_jpeg_2k_lossless.dcm": 0,
    "compressed/pydicom-data/emri_small_jpeg_ls_lossless.dcm": 0,
    "compressed/pydicom-data/JLSL_16_15_1_1F.dcm": 0,
    "compressed/pydicom-data/JPEG-LL.dcm": 0,
    "compressed/pydicom-data/mlut_18.dcm": 0,
    "compressed/pydicom-data/parametric_map_float.dcm": 0,
    "ultrasound/pydicom-data/JPGLosslessP14SV1_1s_1f_8b.dcm": 1,
    "ultrasound/pydicom-data/OBXXXX1A_rle.dcm": 0,
    "ultrasound/pydicom-data/US1_J2KR.dcm": 0,
}
HEADING = "## Every series of the test data"
LEGEND = (
    "Each cell: how many volumes; the largest error of a corner of a slice, in mm; the largest error of a value, in"
    " per cent of the series' largest; and slices that are not there at all. Bold: wrong (another number of volumes,"
    " a tenth of the slice spacing, a thousandth of the largest value, or a slice lost). To refuse what is no scan is"
    " the business of a program that denoises, not of a general reader, so those are counted apart."
)


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("docs/dicom.md"))
    arguments = parser.parse_args()
    if not os.environ.get("N2S_DATA"):
        sys.exit("N2S_DATA names no folder of real scans")
    warnings.simplefilter("ignore")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    data = Path(os.environ["N2S_DATA"])
    rows, back = [], []
    wrong = {scans: dict.fromkeys(READERS, 0) for scans in (True, False)}
    with tempfile.TemporaryDirectory() as work:
        for name, right in {**SERIES, **MADE}.items():
            staged = _staged(name, data, Path(work) / "staged")
            frames = truths(staged) if right else []
            outcomes = {reader: outcome(read, staged, frames) for reader, read in READERS.items()}
            for reader, found in outcomes.items():
                wrong[right > 0][reader] += not found.is_right(right)
            rows.append(f"| {name} | {right or 'refuse'} | {' | '.join(o.cell(right) for o in outcomes.values())} |")
            print(rows[-1], flush=True)
            if right:
                back += written(name, staged, Path(work))
                print(back[-1], flush=True)
            shutil.rmtree(Path(work) / "staged")
    before = arguments.out.read_text(encoding="utf-8").partition(HEADING)[0] if arguments.out.exists() else ""
    arguments.out.write_text(before + "\n".join(_page(rows, back, wrong)), encoding="utf-8")


def _staged(name: str, data: Path, folder: Path) -> Path:
    """Return where the series ``name`` lies alone: the others would stumble over a licence beside it."""
    folder.mkdir()
    if name in MADE:
        return make(name, data, folder)
    for file in dicom_files(data / name):
        (folder / file.name).symlink_to(file)
    return folder if (data / name).is_dir() else folder / Path(name).name


def _page(rows: Sequence[str], back: Sequence[str], wrong: dict[bool, dict[str, int]]) -> list[str]:
    rights = [*SERIES.values(), *MADE.values()]
    return [
        HEADING,
        "",
        "Written by `python benchmarks/dicom_table.py`. " + LEGEND,
        "",
        f"| series | right | {' | '.join(READERS)} |",
        "|---|---|" + "---|" * len(READERS),
        *rows,
        f"| **wrong, of {sum(right > 0 for right in rights)} scans** | | {_joined(wrong[True])} |",
        f"| **read, of {rights.count(0)} that are none, or ambiguous** | | {_joined(wrong[False])} |",
        "",
        "### Written back unchanged",
        "",
        "Value: the largest change, in per cent of the largest value. dciodvfy: errors in derived files that their"
        " sources lack. dcentvfy: of source and derived series together. dcm2niix: how far it puts a corner of the"
        " derived series from where this package does; it has no sheared grid for a tilted gantry, and no scale for"
        " ultrasound.",
        "",
        "| series | value | dciodvfy | dcentvfy | dcm2niix |",
        "|---|---|---|---|---|",
        *back,
        "",
    ]


def _joined(counts: dict[str, int]) -> str:
    return " | ".join(str(count) for count in counts.values())


if __name__ == "__main__":
    main()

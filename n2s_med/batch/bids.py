"""A BIDS data set: which of its images are denoised, and how the results become a BIDS derivative.

Every magnitude image of ``anat``, ``func``, ``dwi``, ``perf``, ``pet`` and ``ct`` is; maps, masks and phases are left
out. A result has its source's name and ``desc-denoised``, and a sidecar with its source's metadata, those inherited
from further up too, and where it comes from. CT is not in BIDS yet: ``.bidsignore`` names it, as it does the reports.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import n2s_med
from n2s_med.atomic import check_apart, whole
from n2s_med.batch.manifest import NAME, Record, State
from n2s_med.batch.plan import Step, stat_hash
from n2s_med.batch.task import Task, json_text
from n2s_med.errors import InputError, OutputError
from n2s_med.jobs.places import stem_name
from n2s_med.volumes import is_nifti_name, read_json

VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
SCANS: Mapping[str, tuple[str, frozenset[str]]] = {
    "anat": ("mr", frozenset(("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "angio"))),
    "func": ("mr", frozenset(("bold", "cbv", "sbref"))),
    "dwi": ("mr", frozenset(("dwi", "sbref"))),
    "perf": ("mr", frozenset(("asl", "m0scan"))),
    "pet": ("pet", frozenset(("pet",))),
    "ct": ("ct", frozenset(("ct",))),
}
"""Folder of the data type: modality, and the suffixes of its images that are denoised."""
GRADIENTS = (".bval", ".bvec")
IGNORED = ("**/ct", "*.report.html", "*.report.json", NAME)


@dataclass(frozen=True)
class BidsName:
    """The parts of a file's name: ``sub-01_run-1_T1w.nii.gz``.

    Attributes
    ----------
    entities
        ``("sub-01", "run-1")``.
    suffix
        ``"T1w"``.
    """

    entities: tuple[str, ...]
    suffix: str

    @classmethod
    def of(cls, stem: str) -> Self:
        """Return the parts of a name without its extension."""
        *entities, suffix = stem.split("_")
        return cls(tuple(entities), suffix)

    def described(self, what: str) -> str:
        """The name of what was made of it, without extension."""
        entities = [entity for entity in self.entities if not entity.startswith("desc-")]
        return "_".join([*entities, f"desc-{what}", self.suffix])

    def inherits(self, other: BidsName) -> bool:
        """Whether metadata under the name ``other`` are metadata of this too."""
        return other.suffix == self.suffix and set(other.entities) <= set(self.entities)


@dataclass(frozen=True)
class BidsTree:
    """The layout of a BIDS data set and of its derivative.

    Attributes
    ----------
    participants
        Labels, with or without ``sub-``, of those to denoise; none means all.
    """

    participants: Sequence[str] = ()

    def check(self, root: Path, out: Path) -> None:
        """Refuse what is no BIDS data set, and an output that is another one.

        Raises
        ------
        InputError
            The input has no data set description, or lacks a participant.
        OutputError
            The output is the input, or the derivative of something else.
        """
        if not root.is_dir():
            raise InputError("no such folder", remedy="check the path", path=root)
        _description(root)
        check_apart(root, out, spare=root / "derivatives")
        for name in self._subjects():
            if not (root / name).is_dir():
                raise InputError(f"there is no {name}", remedy="check --participant-label", path=root)
        if (out / DESCRIPTION).exists() and not _is_ours(_description(out)):
            raise OutputError("it holds another BIDS data set", remedy="choose another folder", path=out)

    def find(self, root: Path, records: Mapping[str, Record]) -> tuple[list[Task], list[Step]]:
        """Return the images of the participants, and steps for those left out.

        Raises
        ------
        InputError
            A sidecar cannot be read.
        """
        del records  # the place of a result follows from its source's name alone
        tasks, left_out = [], []
        for image in self._images(root):
            reason = _why_left_out(image)
            if reason:
                left_out.append(Step(_bare_task(root, image), State.LEFT_OUT, reason))
            else:
                tasks.append(_task(root, image))
        return tasks, left_out

    def begin(self, root: Path, out: Path) -> None:
        """Write the description of the derivative, its readme and what validators shall ignore."""
        name = _description(root).get("Name", "data set")
        link = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
        description = {
            "Name": f"{name}, denoised",
            "BIDSVersion": VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "n2s-med", "Version": n2s_med.__version__}],
            "DatasetLinks": {"raw": link},
        }
        readme = (
            "Denoised by n2s-med with a score network and the noise law of each image (Noise2Score).\n"
            "Each image has a report beside it; batch.jsonl tells what became of each. For research use.\n"
        )
        for file, text in (
            (DESCRIPTION, json_text(description)),
            ("README.md", readme),
            (".bidsignore", "\n".join(IGNORED) + "\n"),
        ):
            with whole(out / file, overwrite=True) as partial:
                partial.write_text(text, encoding="utf-8")

    def _subjects(self) -> list[str]:
        return [f"sub-{label.removeprefix('sub-')}" for label in self.participants]

    def _images(self, root: Path) -> Iterator[Path]:
        subjects = self._subjects() or sorted(folder.name for folder in root.glob("sub-*") if folder.is_dir())
        for subject in subjects:
            for pattern in ("*/*", "ses-*/*/*"):
                files = sorted((root / subject).glob(pattern))
                yield from (file for file in files if is_nifti_name(file) and file.parent.name in SCANS)


def _why_left_out(image: Path) -> str:
    name = BidsName.of(stem_name(image.name))
    if name.suffix not in SCANS[image.parent.name][1]:
        return f"{name.suffix} is no image whose noise is known"
    part = next((entity for entity in name.entities if entity.startswith("part-")), "part-mag")
    return "" if part == "part-mag" else f"{part} is not a magnitude"


def _bare_task(root: Path, image: Path) -> Task:
    source = image.relative_to(root).as_posix()
    key = hashlib.sha256(f"bids\0{source}".encode(errors="surrogateescape")).hexdigest()
    return Task(key[:24], "NIfTI", source, "", key, (source,), 0)


def _task(root: Path, image: Path) -> Task:
    bare, name = _bare_task(root, image), BidsName.of(stem_name(image.name))
    folder = image.parent.relative_to(root)
    result, sd_map = (folder / name.described(what) for what in ("denoised", "denoisedstd"))
    ending = ".nii.gz"
    metadata = {**_metadata(root, image), "Sources": [f"bids:raw:{bare.source}"], "SkullStripped": False}
    sidecars = {
        f"{result}.json": json_text(metadata | {"Description": "Denoised by n2s-med"}),
        **{
            # under the source's name, without desc: the SD map inherits them too, as BIDS asks
            f"{folder / stem_name(image.name)}{path.suffix}": path.read_text(encoding="utf-8")
            for path in _gradients(root, image)
        },
    }
    return Task(
        bare.key,
        bare.scan,
        bare.source,
        f"{result}{ending}",
        bare.group,
        bare.files,
        0,
        modality=SCANS[image.parent.name][0],
        metadata=json_text(metadata),
        inputs_stat=stat_hash(root, bare.files),
        sd_map=f"{sd_map}{ending}",
        sidecars=sidecars,
        sd_sidecar=json_text(metadata | {"Description": "Standard deviation of each denoised voxel"}),
    )


def _metadata(root: Path, image: Path) -> dict[str, Any]:
    """The sidecar of an image, with what it inherits; the nearest to the image has the last word."""
    metadata: dict[str, Any] = {}
    for path in _inherited(root, image, ".json"):
        metadata |= read_json(path)
    return metadata


def _gradients(root: Path, image: Path) -> Iterator[Path]:
    """The nearest table of b-values and of gradient directions of a diffusion image."""
    for ending in GRADIENTS if image.parent.name == "dwi" else ():
        yield from list(_inherited(root, image, ending))[-1:]


def _inherited(root: Path, image: Path, ending: str) -> Iterator[Path]:
    """Files with this ending that apply to an image, from the top of the data set down to its folder."""
    name = BidsName.of(stem_name(image.name))
    folders = [folder for folder in reversed(image.parents) if folder == root or root in folder.parents]
    for folder in folders:
        found = [path for path in folder.glob(f"*{ending}") if name.inherits(BidsName.of(path.stem))]
        yield from sorted(found, key=lambda path: (len(BidsName.of(path.stem).entities), path.name))


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"it is no BIDS data set: no {DESCRIPTION}", remedy="check the path", path=folder)
    return read_json(path)


def _is_ours(description: Mapping[str, Any]) -> bool:
    makers = description.get("GeneratedBy") or [{}]
    return bool(isinstance(makers, list) and makers[0].get("Name") == "n2s-med")

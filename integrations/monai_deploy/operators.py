"""Two operators for MONAI Deploy: denoise DICOM series with a bundle of n2s-med, and write them as derived series.

The SDK's own operators cast what a bundle returns to uint8, and its volumes no longer know their slices' headers.
Between these two goes the volume itself, float32 in the scan's units, with the files that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.deploy.core import Fragment, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series_selection import StudySelectedSeries
from monai.deploy.operators.inference_operator import InferenceOperator
from monai.deploy.operators.monai_bundle_inference_operator import get_bundle_config
from monai.transforms import Compose

from n2s_med.bundle import LoadScand, SaveScand, denoising
from n2s_med.errors import InputError
from n2s_med.volumes import read

SELECTED, DENOISED = "study_selected_series_list", "denoised"
"""Ports: what DICOMSeriesSelectorOperator sends, and what goes from one of these operators to the other."""


class DenoiseOperator(InferenceOperator):  # type: ignore[misc]
    """Read the selected series, and denoise them as the bundle's ``inference.json`` says.

    Receives the selection of ``DICOMSeriesSelectorOperator``; sends a list of volumes (C, X, Y, Z), float32. The
    series are read by this package: the SDK's loader keeps one image for each position, so it would lose time points.

    Parameters
    ----------
    fragment
        The application.
    bundle
        Folder of the bundle.
    overrides
        Keys of the bundle's configuration, such as ``orientations`` or ``adaptation``.
    """

    def __init__(self, fragment: Fragment, *args: Any, bundle: Path, overrides: dict[str, Any], **kwargs: Any) -> None:
        self.bundle, self.overrides = bundle, overrides
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input(SELECTED)
        spec.output(DENOISED)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002
        """Denoise what was selected."""
        config = get_bundle_config(str(self.bundle), ["inference"])
        config.update({"bundle_root": str(self.bundle), **self.overrides})
        self.preprocessing = Compose(
            [t for t in config.get_parsed_content("preprocessing").transforms if not isinstance(t, LoadScand)]
        )
        self.inferer = config.get_parsed_content("inferer")
        self.network = config.get_parsed_content("network").eval()
        volumes = selected_volumes(op_input.receive(SELECTED))
        op_output.emit([self.predict(self.pre_process(volume)) for volume in volumes], DENOISED)

    def pre_process(self, data: MetaTensor, *_: Any, **__: Any) -> MetaTensor:
        """Measure the noise of a volume."""
        measured: MetaTensor = self.preprocessing({"image": data})["image"]
        return measured

    def predict(self, data: MetaTensor, *_: Any, **__: Any) -> MetaTensor:
        """Denoise a volume."""
        with torch.no_grad():
            denoised: MetaTensor = self.inferer(data[None], self.network)[0]
        return denoised


def selected_volumes(studies: Sequence[StudySelectedSeries]) -> Iterator[MetaTensor]:
    """Every volume of the selected series, read from the files that the selection names.

    Raises
    ------
    InputError
        If nothing of it can be read, with the reasons of all that was refused.
    """
    files = {Path(name).resolve() for name in _files(studies)}
    found, reasons = 0, list[str]()
    for folder in sorted({file.parent for file in files}):
        contents = read(folder)
        reasons += [str(refusal) for refusal in contents.refusals]
        for volume in contents.volumes:
            if files & {Path(name).resolve() for name in volume.meta["source"]}:
                found += 1
                yield volume
    if not found:
        told = "; ".join(reasons) or "nothing was selected"
        raise InputError(f"no selected series that can be read ({told})", remedy="check the input and the rules")


def _files(studies: Sequence[StudySelectedSeries]) -> Iterable[str]:
    for study in studies:
        for selected in study.selected_series:
            for instance in selected.series.get_sop_instances():
                yield instance.get_native_sop_instance().filename


class DerivedSeriesWriterOperator(Operator):  # type: ignore[misc]
    """Write denoised volumes as derived DICOM series, each with its report.

    Receives what :class:`DenoiseOperator` sends.

    Parameters
    ----------
    fragment
        The application.
    output_folder
        Where the series go, a folder each.
    """

    def __init__(self, fragment: Fragment, *args: Any, output_folder: Path, **kwargs: Any) -> None:
        self.output_folder = output_folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the port."""
        spec.input(DENOISED)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002
        """Write what was denoised."""
        volumes: list[MetaTensor] = op_input.receive(DENOISED)
        save = SaveScand("pred", denoising(volumes[0].meta["modality"], str(self.output_folder)))
        for volume in volumes:
            save({"pred": volume})

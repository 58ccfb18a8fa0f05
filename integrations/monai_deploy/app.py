"""MONAI Deploy application: DICOM series in, denoised derived series out.

    python app.py -i STUDY -o OUT -m bundles/ct_gaussian

``STUDY`` is a folder of DICOM files; the series of the bundle's modality are taken. ``OUT`` must not hold results
yet. As a MONAI Application Package: ``monai-deploy package``, with the bundle as its model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from operators import DENOISED, SELECTED, DenoiseOperator, DerivedSeriesWriterOperator

from n2s_med.bundle.network import settings_of
from n2s_med.modalities import modality_named

OVERRIDES = "N2S_OVERRIDES"
"""Environment variable with keys of the bundle's configuration, as JSON, such as ``{"orientations": 1}``."""


class DenoiseApplication(Application):  # type: ignore[misc]
    """From a study to the denoised series of one modality."""

    def compose(self) -> None:
        """Connect the operators."""
        context = Application.init_app_context(self.argv)
        bundle = Path(context.model_path).resolve()
        modality = modality_named(settings_of(bundle)["modality"])
        load = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="load"
        )
        rules = {"selections": [{"name": modality.name, "conditions": {"Modality": f"^{modality.dicom}$"}}]}
        select = DICOMSeriesSelectorOperator(self, rules=json.dumps(rules), all_matched=True, name="select")
        denoise = DenoiseOperator(
            self, bundle=bundle, overrides=json.loads(os.environ.get(OVERRIDES, "{}")), name="denoise"
        )
        write = DerivedSeriesWriterOperator(self, output_folder=Path(context.output_path), name="write")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, denoise, {(SELECTED, SELECTED)})
        self.add_flow(denoise, write, {(DENOISED, DENOISED)})


if __name__ == "__main__":
    DenoiseApplication().run()

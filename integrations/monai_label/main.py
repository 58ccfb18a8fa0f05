"""MONAI Label app of the n2s-med bundles: a scan goes in, and comes back denoised, as intensities.

MONAI Label takes a bundle that it does not know for a segmentation, and resizes, rounds and colours what it returns.
Here a bundle's result stays what it is: float32 on the scan's own grid, in its units.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monailabel.interfaces.tasks.infer_v2 as infer_types
import numpy as np
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.transform.writer import write_itk

from n2s_med.bundle import SaveScand
from n2s_med.errors import ConfigurationError, InputError

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What a denoised scan may be sent as."""


class DenoiseTask(BundleInferTask):  # type: ignore[misc]
    """A bundle of n2s-med as a task of MONAI Label.

    Parameters
    ----------
    path
        Folder of the bundle, with its weights in ``models/model.pt``.
    conf
        What was given to the server with ``--conf``.
    """

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(
            path,
            conf,
            type=infer_types.InferType.OTHERS,
            post_filter=[SaveScand],
            add_post_restore=False,
            load_strict=True,
        )
        if not self.valid:
            raise ConfigurationError(
                "no bundle with weights", remedy="put them there: python -m n2s_med.bundle weights", path=path
            )
        self.labels: dict[str, int] = {}  # of a segmentation; here the one channel is the scan
        self._config.pop("model_filename", None)  # the dimension chooses between these

    def pre_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable[..., Any]]:
        """Return the bundle's own preprocessing: read the scan, measure its noise."""
        return list(super().pre_transforms(data))

    def writer(
        self,
        data: dict[str, Any],
        extension: str | None = None,
        dtype: Any = None,  # noqa: ARG002
    ) -> tuple[str, Any]:
        """Write the denoised scan, and return the file and what is told of it.

        Parameters
        ----------
        data
            What the transforms left; ``result_extension`` may ask for a format. A number type that is asked for is
            one of labels, and passed over.
        extension, dtype
            As in MONAI Label.
        """
        denoised = data[self.output_label_key]
        if len(denoised) > 1:
            raise InputError(f"{len(denoised)} time points", remedy="give one of them, or use n2s-med denoise")
        suffix = extension or data.get("result_extension") or EXTENSIONS[0]
        if suffix not in EXTENSIONS:
            raise InputError(f"{suffix} cannot hold intensities", remedy=f"ask for one of {', '.join(EXTENSIONS)}")
        with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
            name = file.name  # MONAI Label removes it once it is sent
        affine = np.asarray(denoised.affine)
        write_itk(np.asarray(denoised[0].cpu()), name, affine, np.float32, suffix != ".nii")
        return name, {"units": denoised.meta["units"], "noise": denoised.meta["noise"][0].sentence}


class DenoiseApp(MONAILabelApp):  # type: ignore[misc]
    """The app: one task for each bundle named by ``--conf bundles DIR[,DIR…]``."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(
            app_dir,
            studies,
            conf,
            name="n2s-med",
            description="Denoise PET, CT, MR and ultrasound without clean images. For research use.",
            version="0.1.0",
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Return the tasks by the names of their bundles."""
        named = [Path(name) for name in self.conf.get("bundles", "").split(",") if name]
        if not named:
            raise ConfigurationError("no bundle is named", remedy="add --conf bundles DIR[,DIR…]")
        return {folder.resolve().name: DenoiseTask(str(folder.resolve()), self.conf) for folder in named}

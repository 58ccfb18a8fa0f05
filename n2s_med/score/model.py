"""A trained score network with what is needed to use it, as one file."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from n2s_med.atomic import whole
from n2s_med.errors import ModelError
from n2s_med.score.network import ScoreUNet

FORMAT = 3
ANY = "any"
PACKAGED = Path(__file__).parent.parent / "weights"
"""Folder of the base weights, one folder each."""


@dataclass(frozen=True)
class ScoreModel:
    """A score network and its card.

    Attributes
    ----------
    network
        The network, of unit-noise volumes.
    scale
        Factor on its output at inference (see :attr:`n2s_med.score.objectives.Objective.scale`).
    modality
        Modality it was trained for, or ``"any"``.
    law
        Name of the noise law it was trained under, or ``"any"``.
    card
        How it was made: configuration, data hashes, clean-free figures. Plain numbers and strings.
    learned_counts
        Whether it was trained by count splitting, and so holds however few the counts are.
    """

    network: ScoreUNet
    scale: float = 1.0
    modality: str = ANY
    law: str = ANY
    card: Mapping[str, Any] = field(default_factory=dict)
    learned_counts: bool = False

    def check_fits(self, *, modality: str | None, law: str, spatial_dims: int) -> None:
        """Refuse data that the model was not trained for.

        Raises
        ------
        ModelError
            Naming the first of modality, law and dimension that differs.
        """
        for what, mine, wanted in (
            ("modality", self.modality, modality or ANY),
            ("noise law", self.law, law),
            ("dimension", self.network.spatial_dims, spatial_dims),
        ):
            if mine != wanted and ANY not in (mine, wanted):
                raise ModelError(
                    f"the model was trained for {what} {mine}, the scan needs {wanted}",
                    remedy="give a model trained for it, or none to train on the scan itself",
                )

    def centred(self, centre: float) -> ScoreModel:
        """A copy for a scan whose typical unit-noise value is ``centre``."""
        network = copy.deepcopy(self.network)
        network.centre.fill_(centre)
        return replace(self, network=network)

    @property
    def hash(self) -> str:
        """SHA-256 over the weights and the scale, in hexadecimal."""
        digest = hashlib.sha256(repr(self.scale).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the model, whole or not at all.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        save_tensors(
            {
                "format": FORMAT,
                "network": {
                    "spatial_dims": self.network.spatial_dims,
                    "channels": list(self.network.channels),
                },
                "state": self.network.state_dict(),
                "scale": self.scale,
                "modality": self.modality,
                "law": self.law,
                "learned_counts": self.learned_counts,
                "card": dict(self.card),
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> ScoreModel:
        """Read what :meth:`save` wrote; ``path`` is the file, or a folder with ``model.pt`` in it.

        The bare name of base weights that come with the package (``base-3d``) means these, unless a file or
        folder here is called so.

        Raises
        ------
        ModelError
            If it is missing, damaged, or of another format.
        """
        if len(path.parts) == 1 and not path.exists() and (PACKAGED / path).is_dir():
            path = PACKAGED / path
        file = path / "model.pt" if path.is_dir() else path
        saved = load_tensors(file)
        try:
            if saved["format"] != FORMAT:
                raise ModelError(
                    f"model format {saved['format']}, this version reads {FORMAT}",
                    remedy="train again with this version",
                    path=file,
                )
            network = ScoreUNet(**saved["network"])
            network.load_state_dict(saved["state"])
            counts = saved.get("learned_counts", False)  # the first files of this format do not say
            return cls(network, saved["scale"], saved["modality"], saved["law"], saved["card"], counts)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError("not a model of n2s-med", remedy="give the model.pt of a training", path=file) from error


def base_model(spatial_dims: int) -> ScoreModel:
    """The base weights that are taken by default, for volumes (3) or single slices (2).

    Raises
    ------
    ModelError
        If they are missing or damaged.
    """
    return ScoreModel.load(PACKAGED / f"base-{spatial_dims}d")


def load_tensors(file: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values; no code in the file is run."""
    if not file.is_file():
        raise ModelError("no such model file", remedy="give the model.pt or the folder of a training", path=file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ModelError("damaged or no model file", remedy="copy or train it again", path=file) from error
    if not isinstance(saved, dict):
        raise ModelError("not a model of n2s-med", remedy="give the model.pt of a training", path=file)
    return saved


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write ``content`` with torch, whole or not at all, in place of what was there."""
    serialised = io.BytesIO()
    torch.save(content, serialised)
    with whole(path, overwrite=True, needed_bytes=serialised.tell()) as partial:
        partial.write_bytes(serialised.getbuffer())


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """A detached copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

"""The network of a bundle: with which weights it starts, and in the form that other runtimes take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from n2s_med.errors import ConfigurationError, ModelError
from n2s_med.noise import NoiseModel
from n2s_med.score import ScoreModel, ScoreUNet, base_model
from n2s_med.score.model import PACKAGED, load_tensors, save_tensors

LEARNED_COUNTS = "learned_counts"
"""What a file of weights calls their having been learned from whole counts."""


def weights_of(bundle_root: str, spatial_dims: int = 3) -> str:
    """The weights that a bundle works with: its own, else the base weights of the package.

    Parameters
    ----------
    bundle_root
        Folder of the bundle; its weights are ``models/model.pt``, or ``models/model_2d.pt`` and ``model_3d.pt`` for
        the dimension that this one does not hold.
    spatial_dims
        2 or 3.
    """
    own = best_file(f"{bundle_root}/models", spatial_dims)
    return own if Path(own).is_file() else str(PACKAGED / f"base-{spatial_dims}d" / "model.pt")


def best_file(ckpt_dir: str, spatial_dims: int = 3) -> str:
    """The file for a bundle's weights of one dimension, whether it is there or not; see :func:`weights_of`."""
    usual = Path(ckpt_dir) / "model.pt"
    taken = usual.is_file() and _dims_of(usual) != spatial_dims
    return str(usual.with_name(f"model_{spatial_dims}d.pt") if taken else usual)


def _dims_of(file: Path) -> int:
    """Dimensions of a network: its convolutions have two axes more."""
    return max((tensor.ndim - 2 for tensor in _state_of(file).values()), default=0)


def save_weights(network: nn.Module, file: Path, *, learned_counts: bool) -> None:
    """Save weights as MONAI keeps them, and what they were learned from in the metadata that PyTorch keeps with them.

    Parameters
    ----------
    network
        The network.
    file
        Where they go.
    learned_counts
        Whether they were learned from whole counts, split where they are few.
    """
    state = network.state_dict()
    state.update({name: tensor.cpu() for name, tensor in state.items()})
    state._metadata[""][LEARNED_COUNTS] = learned_counts  # type: ignore[attr-defined]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(state, file)


def learned_counts(file: str | Path) -> bool:
    """Whether the weights in a file were learned from whole counts, and so hold however few the counts are.

    Parameters
    ----------
    file
        Weights as MONAI saves them, or a model of ``n2s-med train``.

    Raises
    ------
    ModelError
        If it is missing or damaged.
    """
    saved = load_tensors(Path(file))
    told = saved if "state" in saved else getattr(saved, "_metadata", {}).get("", {})
    return bool(told.get(LEARNED_COUNTS, False))


def _state_of(file: Path) -> dict[str, Tensor]:
    """The weights in a file: those alone, as MONAI saves them, or a model of ``n2s-med train``."""
    saved = load_tensors(file)
    if "state" not in saved:
        return saved
    model = ScoreModel.load(file)
    if model.scale != 1:
        raise ModelError(
            "the model was trained under an objective whose output needs a factor",
            remedy="train it with --set objective=total-unit-noise, or use it with n2s-med denoise --model",
            path=file,
        )
    return dict(model.network.state_dict())


def settings_of(bundle: Path) -> dict[str, Any]:
    """What a bundle says of its scans and its network: ``modality``, ``spatial_dims`` and ``architecture``.

    Raises
    ------
    ModelError
        If the folder is no bundle.
    """
    file = bundle / "configs" / "inference.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {key: content[key] for key in ("modality", "spatial_dims", "architecture")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError("no bundle of n2s-med", remedy="give a folder of bundles/", path=bundle) from error


def bundle_network(bundle: Path) -> ScoreUNet:
    """Return the network of a bundle with the weights that it works with.

    Raises
    ------
    ModelError
        If the folder is no bundle, or its weights do not fit.
    """
    settings = settings_of(bundle)
    dims = settings["spatial_dims"]
    return score_network(dims, settings["architecture"], weights_of(str(bundle), dims))


def place_base_weights(bundle: Path) -> list[Path]:
    """Put the base weights of the package into a bundle as MONAI keeps weights, and return the files.

    Those of the bundle's dimension go to ``models/model.pt``, where MONAI's consumers look for them; those of the
    other one, if the package has them, beside it.

    Raises
    ------
    N2SError
        If the package has no weights of the bundle's dimension, or the folder is no bundle.
    """
    own = settings_of(bundle)["spatial_dims"]
    names = {own: "model.pt", 5 - own: f"model_{5 - own}d.pt"}
    wanted = [dims for dims in names if dims == own or (PACKAGED / f"base-{dims}d").is_dir()]
    models = bundle / "models"
    models.mkdir(exist_ok=True)
    for dims in wanted:
        save_tensors(base_model(dims).network.state_dict(), models / names[dims])
    return [models / names[dims] for dims in wanted]


def score_network(
    spatial_dims: int = 3, architecture: Mapping[str, Any] | None = None, ckpt_path: str | None = None
) -> ScoreUNet:
    """Return the score network, with the weights of a file or new ones.

    Parameters
    ----------
    spatial_dims
        2 or 3.
    architecture
        Arguments of :class:`~n2s_med.score.ScoreUNet`. Those left out are as in the file, where it tells them, else
        as in the base weights of the package.
    ckpt_path
        Weights as MONAI saves them, or a model of ``n2s-med train``; ``None`` takes none.

    Raises
    ------
    ConfigurationError
        If the network has no such argument.
    ModelError
        If the file is missing, damaged, or holds another network.
    """
    arguments = {**_architecture(spatial_dims, ckpt_path), **(architecture or {}), "spatial_dims": spatial_dims}
    try:
        network = ScoreUNet(**arguments)
    except TypeError as error:
        raise ConfigurationError(
            f"no network has the architecture {dict(architecture or {})}", remedy="correct --architecture"
        ) from error
    if ckpt_path is None:
        return network
    state = _state_of(Path(ckpt_path))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()} != shapes:
        raise ModelError(
            f"it does not hold a network of {spatial_dims} dimensions with {_told(arguments)}",
            remedy="correct --ckpt_path, --spatial_dims or --architecture",
            path=ckpt_path,
        )
    network.load_state_dict(state)
    network.centre.zero_()
    return network


def _architecture(spatial_dims: int, ckpt_path: str | None) -> dict[str, Any]:
    """Arguments of the network in a file, where it tells them, else of the base weights."""
    saved = load_tensors(Path(ckpt_path)) if ckpt_path else {}
    if "network" not in saved:
        saved = load_tensors(PACKAGED / f"base-{spatial_dims}d" / "model.pt")
    return dict(saved["network"])


def _told(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items() if name != "spatial_dims")


class DenoisingNetwork(nn.Module):
    """The network with the Tweedie step, for runtimes that know tensors alone (ONNX, TensorRT, Holoscan).

    One pass, a step of one along the score: what :class:`~n2s_med.denoise.Denoiser` measures and averages besides is
    not in it.

    Parameters
    ----------
    network
        Score network.
    law
        Noise law with its level, in the units of the scans. It is fixed in what is exported.
    """

    def __init__(self, network: ScoreUNet, law: NoiseModel) -> None:
        super().__init__()
        self.network, self.law = network, law

    def forward(self, y: Tensor, typical: Tensor, traits: Tensor) -> Tensor:
        """Return ``x_hat``, in the units of ``y``.

        Parameters
        ----------
        y
            Noisy volumes, shape (N, 1, X, Y[, Z]).
        typical
            A typical value of each, such as its median, shape (N,).
        traits
            Correlation of the noise, shape (N, 4 or 6); zeros where it is white.
        """
        centre = self.law.to_unit(typical).view(-1, *(1,) * (y.ndim - 1))
        score: Tensor = self.network(self.law.to_unit(y) - centre, traits)
        return self.law.mean_from_unit(y, score)

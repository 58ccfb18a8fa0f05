"""The software that a run is made with: versions, commit, threads, and every installed package."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

import n2s_med

PACKAGE = Path(n2s_med.__file__)
"""What the repository must know for its commit to be this code's."""


def facts() -> dict[str, str]:
    """Return what is known of the software, by name."""
    asked: dict[str, Callable[[], str | None]] = {
        "n2s_med": lambda: _version("n2s-med"),
        "commit": commit,
        "python": platform.python_version,
        "torch": lambda: torch.__version__,
        "monai": lambda: _version("monai"),
        "platform": lambda: f"{platform.system()} {platform.machine()}",
        "threads": lambda: str(torch.get_num_threads()),
    }
    known = {name: fact() for name, fact in asked.items()}
    return {name: value for name, value in known.items() if value is not None}


def source_tags() -> dict[str, str]:
    """Return MLflow's own names for the source of a run, so that its pages show them; no user name."""
    tags = {"mlflow.source.name": "n2s-med", "mlflow.source.type": "LOCAL"}
    known = commit()
    return tags if known is None else {**tags, "mlflow.source.git.commit": known.removesuffix("-dirty")}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def pins(*packages: str) -> list[str]:
    """Return ``name==version`` of these packages, those left out that are not installed."""
    return [f"{name}=={version}" for name in packages if (version := _version(name)) is not None]


def installed() -> list[str]:
    """Return ``name==version`` of every installed package."""
    names = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(names.items())]


def commit() -> str | None:
    """Return the commit of this code, ``-dirty`` if changed since; ``None`` outside its repository."""
    tracked = _git("ls-files", "--error-unmatch", PACKAGE.name)
    head = _git("rev-parse", "HEAD")
    if not tracked or not head:
        return None
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no", ".") else head


def _git(*arguments: str) -> str | None:
    here = PACKAGE.parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no repository: the run is then known by its version alone
    return done.stdout.strip()

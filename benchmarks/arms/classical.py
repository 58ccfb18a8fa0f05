"""Methods without a network. All but the Gaussian filter work on data of unit noise (Anscombe, logarithm)."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
from cases import Scan
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from arms.base import Result, Settings

WIDTHS = np.arange(0.3, 2.55, 0.1)
"""Standard deviations tried by the Gaussian filter, in voxels."""


def noisy(scan: Scan, settings: Settings) -> Result:  # noqa: ARG001
    """The scan as it is."""
    return Result(scan.y)


def best_gaussian_filter(scan: Scan, settings: Settings) -> Result:  # noqa: ARG001
    """A Gaussian filter of the width that the clean volume likes best."""
    tried = [torch.as_tensor(gaussian_filter(scan.y.numpy(), width)) for width in WIDTHS]
    errors = [float((x_hat - scan.truth).square().mean()) for x_hat in tried]
    best = int(np.argmin(errors))
    return Result(tried[best], {"width": round(float(WIDTHS[best]), 2)})


def non_local_means(scan: Scan, settings: Settings) -> Result:  # noqa: ARG001
    """scikit-image's, patches of 5³ in a window of 11³, h = 0.6 noise SDs."""
    from skimage.restoration import denoise_nl_means

    u = scan.noise.law.to_unit(scan.y).numpy()
    return _from_unit(scan, denoise_nl_means(u, patch_size=5, patch_distance=5, h=0.6, sigma=1.0, fast_mode=True))


def bm4d(scan: Scan, settings: Settings) -> Result:  # noqa: ARG001
    """BM4D (Mäkinen et al. 2022), default profile, on intensities in [0, 1]; a spectrum where correlated."""
    import bm4d as package

    u = scan.noise.law.to_unit(scan.y).numpy().astype(np.float64)
    low, span = u.min(), np.ptp(u)
    with patch.object(np, "trapz", np.trapezoid, create=True):  # bm4d 4.2.5 needs it, NumPy 2.4 has it no more
        denoised = package.bm4d((u - low) / span, _level(scan, 1 / span))
    return _from_unit(scan, np.reshape(denoised, u.shape) * span + low)


def _level(scan: Scan, sigma: float) -> float | NDArray[np.float64]:
    """The noise SD, or its power spectrum as BM4D wants it: the variance of the DFT's coefficients."""
    correlation = scan.noise.correlation
    if correlation.is_white:
        return sigma
    transfer = np.fft.fftn(correlation.kernel.double().numpy(), scan.y.shape, axes=range(scan.y.ndim))
    psd: NDArray[np.float64] = np.abs(transfer) ** 2 * sigma**2 * scan.y.numel()
    return psd


def _from_unit(scan: Scan, u_hat: NDArray[np.floating]) -> Result:
    """Back to the scan's units by the unbiased inverse."""
    x_hat: Tensor = scan.noise.law.unbiased_inverse(torch.as_tensor(u_hat, dtype=torch.float32))
    return Result(x_hat)

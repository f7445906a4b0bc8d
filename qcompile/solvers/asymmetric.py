"""The weight that makes up for what stands in front of a linear: the best one for any solver to round."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def asymmetric_target(weight: Array, gram: Array, lacks: Array, damp_percent: float) -> Array:
    """Return V with the smallest mean of |x V - (x W + d)|^2, where d is what the outputs x W lack.

    V = W + (H + damp)^-1 E[x dT], with H = E[x xT]. With errors in front of the linear x is not what the float model
    has there; Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration" (2025), section 3,
    take the same step behind the rounding of each input; here it is taken once, before any, so that every solver can
    follow. Does not apply, and W is returned, where nothing is seen, or what is seen has no finite numbers.

    Args:
        weight: W, float32 [inputs, outputs].
        gram: H, float32 [inputs, inputs].
        lacks: E[x dT], float32 [inputs, outputs].
        damp_percent: share of the mean energy of the inputs that is added to each: V stays near W in directions that
            calibration hardly saw.
    """
    energy = float(np.mean(np.diagonal(gram), dtype=np.float64)) if gram.size else 0.0
    if not np.isfinite(energy) or energy <= _SMALLEST_NORMAL or not np.isfinite(lacks).all():
        return weight
    damped = gram.astype(np.float64) / energy
    np.fill_diagonal(damped, np.diagonal(damped) + damp_percent)
    try:
        moved = np.linalg.solve(damped, lacks.astype(np.float64) / energy)
    except np.linalg.LinAlgError:
        return weight
    found: Array = (weight + moved).astype(np.float32)
    return found if np.isfinite(found).all() else weight

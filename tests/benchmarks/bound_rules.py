"""Published and deployed rules that bound a gradient norm, each as a function from a stream of norms to what it lets through.

Norms have the shape `(calls, streams)`. A clip lets its bound through instead of a larger norm, a
skip 0. Written from what each project's source does, with that project's defaults; what a rule
needs besides the norm (a loss, tensors) is left out.
"""

import bisect
from collections.abc import Callable

import numpy as np

from tests import reference

#: From norms to what is let through.
BoundRule = Callable[[np.ndarray], np.ndarray]


def fixed(norms: np.ndarray) -> np.ndarray:
    """`max_norm=1.0`."""
    return _clipped(norms, 1.0)


def autoclip(norms: np.ndarray) -> np.ndarray:
    """Clip at the 10th percentile of all norms, this one included (Seetharaman et al. 2020;
    pseeth/autoclip).

    A percentile of anything with a NaN is NaN, and so is every later gradient.
    """
    bounds = np.empty_like(norms)
    for stream, of_stream in enumerate(norms.T):
        seen: list[float] = []
        for call, norm in enumerate(of_stream):
            bisect.insort(seen, norm)
            low = call // 10
            above = seen[min(low + 1, call)]
            bounds[call, stream] = seen[low] + call % 10 / 10 * (above - seen[low])
    is_poisoned = np.logical_or.accumulate(np.isnan(norms))
    return np.where(is_poisoned, np.nan, _clipped(norms, bounds))


def zclip(norms: np.ndarray) -> np.ndarray:
    """Past 2.5 deviations, clip to the mean plus 2.5 deviations divided by z / 2.5 (Kumar et al. 2025; bluorion-com/ZClip).

    Its further fixed bound of 1.0 is left out: the rule alone is compared. It teaches itself what
    it let through.
    """
    passed = norms.copy()
    mean, variance = norms[:25].mean(axis=0), norms[:25].var(axis=0)
    for call in range(25, len(norms)):
        norm, deviation = norms[call], np.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        passed[call] = np.where(z > 2.5, mean + 2.5 * deviation / np.maximum(z / 2.5, 1), norm)
        mean = 0.97 * mean + 0.03 * passed[call]
        variance = 0.97 * variance + 0.03 * (passed[call] - mean) ** 2
    return passed


def maxtext(norms: np.ndarray) -> np.ndarray:
    """Skip past the mean plus 6 deviations of the last 128 norms, once there are 64 (MaxText's `skip_step_on_spikes`).

    As OLMo-core's `SkipStepOptimizer`, which also skips what is as far below the mean.
    """
    passed = norms.copy()
    for call in range(63, len(norms)):
        window = norms[max(0, call - 128) : call]
        is_kept = norms[call] - window.mean(axis=0) <= 6 * window.std(axis=0, ddof=1)
        passed[call] = np.where(is_kept, norms[call], 0)
    return passed


def levanter(norms: np.ndarray) -> np.ndarray:
    """Clip at the mean plus 3 deviations of the last 128 norms, once there are 64.

    Levanter's `clip_update_by_historical_norm`.
    """
    passed = norms.copy()
    for call in range(64, len(norms)):
        window = norms[max(0, call - 128) : call]
        passed[call] = _clipped(
            norms[call], window.mean(axis=0) + 3 * np.maximum(window.std(axis=0), 1e-6)
        )
    return passed


def axlearn(norms: np.ndarray) -> np.ndarray:
    """Skip from 20 times the moving mean on; what was skipped teaches nothing (axlearn's
    `skip_and_clip_by_global_norm`).
    """
    passed = np.empty_like(norms)
    mean, taught = np.ones(norms.shape[1]), np.zeros(norms.shape[1])
    for call, norm in enumerate(norms):
        is_kept = norm < 20 * mean
        decay = 0.99 * (1 - 0.99**taught) / (1 - 0.99 ** (taught + 1))
        mean = np.where(is_kept, decay * mean + (1 - decay) * norm, mean)
        taught += is_kept
        passed[call] = np.where(is_kept, norm, 0)
    return passed


def adagc(norms: np.ndarray) -> np.ndarray:
    """Clip at 1.05 times a moving mean of what was let through, per tensor (Wang et al. 2025, arXiv 2502.11034).

    For the first 100 calls at a global 1.0, remembering the least; a stream stands for both norms.
    """
    passed = np.empty_like(norms)
    usual = np.full(norms.shape[1], np.inf)
    for call, norm in enumerate(norms):
        passed[call] = _clipped(norm, 1.0 if call < 100 else 1.05 * usual)
        usual = (
            np.minimum(usual, passed[call]) if call < 100 else 0.98 * usual + 0.02 * passed[call]
        )
    return passed


def running_clip(norms: np.ndarray) -> np.ndarray:
    """`max_norm=running_bound()`."""
    bounds = _running_bounds(norms, deviations=3.0)
    return _clipped(norms, bounds)


def running_skip(norms: np.ndarray) -> np.ndarray:
    """`skip_above=running_bound(deviations=6.0)`, which also skips NaN and inf."""
    return np.where(norms <= _running_bounds(norms, deviations=6.0), norms, 0)


def _running_bounds(norms: np.ndarray, deviations: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs = np.log(norms)
    log_bounds = np.empty_like(logs)
    for stream in range(norms.shape[1]):
        rule = reference.RunningBound(deviations=deviations)
        for call, log_norm in enumerate(logs[:, stream]):
            log_bounds[call, stream] = rule.log_bound
            rule.teach(log_norm)
    return np.exp(log_bounds)


def _clipped(norms: np.ndarray, bounds: np.ndarray | float) -> np.ndarray:
    return np.where(norms > bounds, bounds, norms)


#: The rules by what they are called in the table, with the bytes of their state.
RULES: dict[str, tuple[BoundRule, str]] = {
    "fixed 1.0": (fixed, "0"),
    "AutoClip: clip at the 10th percentile": (autoclip, "grows"),
    "ZClip": (zclip, "8"),
    "OLMo-core, MaxText: skip at mean + 6 sd of 128": (maxtext, "520"),
    "Levanter: clip at mean + 3 sd of 128": (levanter, "520"),
    "axlearn: skip at 20 x mean": (axlearn, "12"),
    "AdaGC": (adagc, "8"),
    "running bound, clip at 3": (running_clip, "12"),
    "running bound, skip at 6": (running_skip, "12"),
}

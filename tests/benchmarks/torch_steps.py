"""The same step in PyTorch: `clip_grad_norm_` and an optimizer, fused or foreach, with as many threads as there are CPUs.

`clip_grad_norm_` scales the gradients in place. So that it has to act in every step, they are
multiplied back by the norm it returned, after the clock has stopped. Parameters and gradients are
shared by all contenders, moments by those of one optimizer.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.turns import Contender
from tests.benchmarks.workloads import LEARNING_RATE, MAX_NORM, SCALE, Workload, filled

MODULE = "torch"


def contenders(workload: Workload) -> dict[str, Contender]:
    """With and without the clip, for each way to run the optimizer; nothing where PyTorch has no
    such step.
    """
    if workload.gradient_dtype != "float32":
        return {}  # a gradient has the dtype of its parameter
    torch: Any = importlib.import_module(MODULE)
    torch.set_num_threads(machine.cpus())
    params = [
        torch.nn.Parameter(torch.from_numpy(leaf)) for leaf in filled(workload.shapes, seed=1)
    ]
    for param, grad in zip(params, filled(workload.shapes, SCALE), strict=True):
        param.grad = torch.from_numpy(grad)
    ready: dict[str, Contender] = {}
    for implementation in ("fused", "foreach"):
        if workload.optimizer == "AdamW":
            optimizer = torch.optim.AdamW(params, LEARNING_RATE, **{implementation: True})
        else:
            optimizer = torch.optim.SGD(
                params, LEARNING_RATE, momentum=0.9, **{implementation: True}
            )
        plain = f"PyTorch, {implementation}"
        ready[plain] = Contender(plain, _plain(optimizer))
        ready[f"{plain}, clip_grad_norm_"] = Contender(plain, _clipped(torch, optimizer, params))
    return ready


def _plain(optimizer: Any) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    return turn


def _clipped(torch: Any, optimizer: Any, params: list[Any]) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        norm = torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        seconds = time.perf_counter() - start
        back = float(norm) / MAX_NORM
        for param in params:
            param.grad.mul_(back)
        return seconds

    return turn

"""The same step in TensorFlow: `tf.clip_by_global_norm` and a Keras optimizer in one `tf.function`, a thread for each CPU.

Variables and moments are shared by both contenders; gradients are arguments, which a step cannot
change.
"""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.turns import Contender
from tests.benchmarks.workloads import LEARNING_RATE, MAX_NORM, SCALE, Workload, filled

MODULE = "tensorflow"


def contenders(workload: Workload) -> dict[str, Contender]:
    """With and without the clip; nothing where the gradients are not float32, as the variables are."""
    if workload.gradient_dtype != "float32":
        return {}
    # Read when they are imported: Keras's backend, and how much TensorFlow says.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tensorflow: Any = importlib.import_module(MODULE)
    keras: Any = importlib.import_module("keras")
    _set_threads(tensorflow)
    params = [keras.Variable(leaf) for leaf in filled(workload.shapes, seed=1)]
    grads = [tensorflow.constant(leaf) for leaf in filled(workload.shapes, SCALE)]
    if workload.optimizer == "AdamW":
        optimizer = keras.optimizers.AdamW(LEARNING_RATE)
    else:
        optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=0.9)
    optimizer.build(params)

    def clipped(grads: list[Any]) -> None:
        optimizer.apply(tensorflow.clip_by_global_norm(grads, MAX_NORM)[0], params)

    def free() -> None:
        # A traced function keeps its variables for good, by references that Python's collector does
        # not see: 1.5 GB a workload.
        for variable in (*params, *optimizer.variables):
            empty = tensorflow.zeros([0], variable.dtype)
            tensorflow.raw_ops.AssignVariableOp(resource=variable.value.handle, value=empty)

    plain = "Keras"
    unclipped = _contender(tensorflow, plain, lambda grads: optimizer.apply(grads, params), grads)
    return {
        plain: unclipped._replace(free=free),
        "Keras, tf.clip_by_global_norm": _contender(tensorflow, plain, clipped, grads),
    }


def _set_threads(tensorflow: Any) -> None:
    threading = tensorflow.config.threading
    if (
        threading.get_intra_op_parallelism_threads() != machine.cpus()
    ):  # it cannot be set after the first operation
        threading.set_intra_op_parallelism_threads(machine.cpus())
        threading.set_inter_op_parallelism_threads(machine.cpus())


def _contender(
    tensorflow: Any, reference: str, step: Callable[[list[Any]], Any], grads: list[Any]
) -> Contender:
    def returning(grads: list[Any]) -> Any:
        step(grads)
        return tensorflow.constant(0)  # to wait for

    start = time.perf_counter()
    function = tensorflow.function(returning).get_concrete_function(grads)
    trace_seconds = time.perf_counter() - start

    def turn() -> float:
        start = time.perf_counter()
        function(*grads).numpy()
        return time.perf_counter() - start

    return Contender(reference, turn, {"trace_seconds": trace_seconds})

"""Compiles programs whose machine code is not what a test is about: in about half the time."""

import functools
from typing import Any

import jax

#: XLA's newer emitter of fused loops for CPUs takes most of the compilation of a small program.
#: From jax 0.12 on there is no other one.
OPTIONS: dict[str, Any] = (
    {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 12) else {}
)

#: `jax.jit`, for the outermost function.
jit = functools.partial(jax.jit, compiler_options=OPTIONS)

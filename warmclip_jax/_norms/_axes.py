"""The mesh axes to sum each leaf over, from the leaf's type or from `axis_name`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec

from warmclip_jax._norms._leaves import from_prefix, gradients
from warmclip_jax._values import ArgumentTypeError, ArgumentValueError

#: `axis_name`: None, a name, a tuple of names, or a pytree prefix of `PartitionSpec`s.
AxisName = Any


class Reduction(NamedTuple):
    """How the sum over a leaf becomes the sum over all its shards.

    A `psum` over `axes`, divided by the size of `copies`.
    """

    axes: tuple[str, ...]
    copies: tuple[str, ...]


def reductions(tree: Any, axis_name: AxisName) -> list[Reduction]:
    """The `Reduction` of each gradient of `tree`, in leaf order.

    Raises:
      TypeError: for an `axis_name` of another form.
      ValueError: for an unreduced leaf; without `axis_name` where types do not track axes; for an
        axis that is not in scope, or that the leaf does not vary over.
    """
    check_axis_name(axis_name)
    manual = manual_axes()
    leaves = gradients(tree)
    for leaf in leaves:
        _check_summed(leaf)
    if not leaves:
        return []
    if axis_name is None:
        if manual and not _typed(manual):
            raise ArgumentValueError(
                f"axis_name must be given inside a map over the axes {manual} that does not track "
                "which values vary (shard_map with check_vma=False, or pmap): the norm of sharded "
                "gradients needs the axes they are sharded over. Pass axis_name=() for gradients "
                "that are the same on every device (averaged, say), an axis name or a tuple of "
                "them where every leaf is sharded, or a pytree prefix of PartitionSpecs; or use "
                "check_vma=True."
            )
        return [Reduction(_varying(leaf, manual), ()) for leaf in leaves]
    typed = _typed(manual)
    return [
        _said(leaf, axes, manual) if typed else Reduction(axes, ())
        for leaf, axes in zip(leaves, _axes_per_leaf(tree, axis_name), strict=True)
    ]


def check_axis_name(axis_name: AxisName) -> AxisName:
    """`axis_name`, when it has one of the forms that `reductions` takes. Raises TypeError."""
    if axis_name is None or _is_names(axis_name):
        return axis_name
    for leaf in jax.tree.leaves(axis_name, is_leaf=_is_spec):
        if not _is_spec(leaf):
            raise ArgumentTypeError(
                "axis_name must be a name, a tuple of names, or a pytree prefix of the gradients "
                f"with PartitionSpec leaves; got {axis_name!r} with the leaf {leaf!r} "
                f"({type(leaf).__name__}). For a leaf write PartitionSpec('data')."
            )
    return axis_name


def manual_axes() -> tuple[str, ...]:
    """The mesh axes that the code being traced is mapped over by hand, in `shard_map` or `pmap`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def varying_axes(array: jax.Array) -> tuple[str, ...]:
    """The mesh axes that the type of `array` varies over: devices may differ along them."""
    return _varying(array, manual_axes())


def _check_summed(leaf: Any) -> None:
    unreduced = jax.typeof(leaf).sharding.spec.unreduced | _manual_type(leaf)[1]
    if unreduced:
        raise ArgumentValueError(
            "gradients must be summed before they are measured; got one of type "
            f"{jax.typeof(leaf)}, whose sum over {', '.join(map(repr, sorted(unreduced)))} is "
            "still to come. Take it first: jax.lax.psum inside of a map, jax.sharding.reshard "
            "elsewhere."
        )


def _manual_type(leaf: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The manual axes that the type of `leaf` varies over, and those still to be summed over."""
    kind = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying, kind.manual_axis_type.unreduced
    return kind.vma, frozenset()  # jax before 0.10


def _typed(manual: Sequence[str]) -> bool:
    # axis_index differs on every device: if its type does not vary, types do not track axes here.
    return bool(manual) and bool(_varying(lax.axis_index(manual[0]), manual))


def _varying(leaf: Any, manual: Sequence[str]) -> tuple[str, ...]:
    varying = _manual_type(leaf)[0] if manual else ()
    return tuple(axis for axis in manual if axis in varying)


def _said(leaf: Any, axes: tuple[str, ...], manual: Sequence[str]) -> Reduction:
    """The `Reduction` in a typed map: over all varying axes, so that the result is replicated.

    Along those not in `axes` the leaf counts as a copy.
    """
    varying = _varying(leaf, manual)
    outside = [axis for axis in axes if axis in manual and axis not in varying]
    if outside:
        raise ArgumentValueError(
            f"axis_name must name axes that the gradient varies over; got {axes!r} for a leaf of "
            f"type {jax.typeof(leaf)}, which is the same along {', '.join(map(repr, outside))} and "
            "would be counted once per device. Leave axis_name out: the types tell."
        )
    extra = tuple(axis for axis in axes if axis not in varying)
    return Reduction((*varying, *extra), tuple(axis for axis in varying if axis not in axes))


def _axes_per_leaf(tree: Any, axis_name: AxisName) -> list[tuple[str, ...]]:
    if _is_names(axis_name):
        axes = _in_scope((axis_name,) if isinstance(axis_name, str) else axis_name)
        return [axes] * len(gradients(tree))
    rule = (
        "axis_name must be a name, a tuple of names, or a pytree prefix of the gradients with "
        "PartitionSpec leaves"
    )
    return list(map(_axes_of, from_prefix(axis_name, tree, rule, _is_spec)))


def _is_names(axis_name: AxisName) -> bool:
    return isinstance(axis_name, str) or (
        type(axis_name) is tuple and all(isinstance(name, str) for name in axis_name)
    )


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def _axes_of(spec: PartitionSpec) -> tuple[str, ...]:
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part is not None]
    mesh = jax.sharding.get_abstract_mesh()
    # The compiler sums over the axes that are not manual.
    automatic = set(mesh.axis_names) - set(mesh.manual_axes)
    return _in_scope(
        tuple(
            axis
            for part in parts
            for axis in part
            if isinstance(axis, str) and axis not in automatic
        )
    )


def _in_scope(axes: tuple[str, ...]) -> tuple[str, ...]:
    for axis in axes:
        try:
            lax.axis_index(axis)
        except NameError as error:
            raise ArgumentValueError(
                f"axis_name must name axes in scope; got {axis!r}, and the mapped axes here are "
                f"{manual_axes()!r}. Outside of shard_map and pmap leave axis_name out: under jit "
                "the compiler sums over all shards by itself."
            ) from error
    return axes

"""The results as Markdown tables: what `README.md` beside this file explains and holds."""

from collections.abc import Iterable
from typing import Any

from tests.benchmarks.jax_steps import OURS, REFERENCE
from tests.benchmarks.workloads import WORKLOADS

#: In place of a number that is not known.
NOTHING = "-"
#: For the limit of a workload, which the results hold as a number.
_FRACTIONS = {
    (gradient + rest, rest): f"{gradient + rest}/{rest}"
    for gradient, rest in ((1, 7), (1, 5), (1, 13))
}


def markdown(results: dict[str, Any]) -> str:
    """Every part of `results` that was measured."""
    parts = [_machine(results["machine"])]
    if results["steps"]:
        parts += [_summary(results["steps"]), _compiling(results["steps"])]
        parts += [_step(name, step) for name, step in results["steps"].items()]
    parts += [table(results[name]) for name, table in _PIECES.items() if name in results]
    return "\n\n".join(parts)


def fraction(limit: float | None) -> str:
    """A limit as it is reasoned out: 8/7."""
    for (above, below), text in _FRACTIONS.items():
        if limit is not None and abs(limit - above / below) < 1e-9:
            return text
    return NOTHING if limit is None else f"{limit:.3f}"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{package} {version}" for package, version in machine["versions"].items() if version
    )
    on = f"{machine['accelerator']}; " if machine.get("accelerator") else ""
    return (
        f"{on}{machine['processor']}, {machine['cpus']} CPUs, {machine['memory_gigabytes']:.0f} GB; "
        f"{machine['system']}, Python {machine['python']}; {versions}."
    )


def _summary(steps: dict[str, Any]) -> str:
    """The workloads side by side: the ratio of each contender that clips to the same step without
    clipping.
    """
    names = list(
        dict.fromkeys(
            row["contender"]
            for step in steps.values()
            for row in step["rows"]
            if not _is_reference(row)
        )
    )
    cells = [["limit by memory traffic", *(fraction(step["limit"]) for step in steps.values())]]
    for name in names:
        of = ({row["contender"]: row for row in step["rows"]}.get(name) for step in steps.values())
        cells.append([name, *(NOTHING if row is None else f"{row['ratio']:.2f}" for row in of)])
    whole = "our whole step by PyTorch's with its best optimizer"
    cells.append([whole, *_number(map(against_torch, steps.values()))])
    return "Step with clip / the same library's step without clip:\n\n" + _table(
        ["", *map(title, steps)], cells
    )


def _compiling(steps: dict[str, Any]) -> str:
    """The workloads side by side: the seconds that each clip in JAX adds to those of the step
    without.
    """
    by_name = [
        {row["contender"]: row for row in step["rows"] if row["compile_seconds"] is not None}
        for step in steps.values()
    ]
    names = [
        name
        for name in dict.fromkeys(name for rows in by_name for name in rows)
        if name != REFERENCE
    ]
    cells = [
        [name, *(_added(rows.get(name), rows[REFERENCE]) for rows in by_name)] for name in names
    ]
    return "Seconds of compiling that a clip adds (with tracing and lowering):\n\n" + _table(
        ["", *map(title, steps)], cells
    )


def _added(row: dict[str, Any] | None, reference: dict[str, Any]) -> str:
    if row is None:
        return NOTHING
    added = {
        stage: row[stage] - reference[stage]
        for stage in ("trace_seconds", "lower_seconds", "compile_seconds")
    }
    return f"{added['compile_seconds']:.1f} ({sum(added.values()):.1f})"


def against_torch(step: dict[str, Any]) -> float | None:
    """Our clip and optimizer by PyTorch's clip and the faster of its optimizers. None without
    PyTorch.
    """
    ratios = [
        row["ratio_to_ours"]
        for row in step["rows"]
        if row["contender"].startswith("PyTorch") and not _is_reference(row)
    ]
    return 1 / min(ratios) if ratios else None


def title(name: str) -> str:
    """A workload as it is called in tables."""
    return WORKLOADS[name].title if name in WORKLOADS else name


def _step(name: str, step: dict[str, Any]) -> str:
    heads = [
        "contender",
        "by no clip",
        f"by {OURS}",
        "ms",
        "trace s",
        "lower s",
        "compile s",
        "temporary MB",
        "peak MB",
        "page faults",
    ]
    cells = [
        [
            row["contender"],
            *_number([row["ratio"], row["ratio_to_ours"]]),
            *_number([row["milliseconds"]], 1),
            *_number(
                [row[stage] for stage in ("trace_seconds", "lower_seconds", "compile_seconds")]
            ),
            *_number([row["temporary_megabytes"], row["peak_megabytes"], row["page_faults"]], 0),
        ]
        for row in step["rows"]
    ]
    return f"{title(name)} (limit {fraction(step['limit'])}):\n\n{_table(heads, cells)}"


def _norm(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["contender"],
            *_number([row["gigabytes_per_second"], row["milliseconds"]], 1),
            f"{row['share']:.0%}",
        ]
        for row in rows
    ]
    return "The norm alone, of GPT-2 small in float32:\n\n" + _table(
        ["", "GB/s", "ms", "of the fastest sum"], cells
    )


def _clip(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["contender"],
            *_number([row["ratio"]]),
            *_number([row["gigabytes_per_second"], row["milliseconds"]], 1),
        ]
        for row in rows
    ]
    return "The clip alone, of GPT-2 small in float32, donated:\n\n" + _table(
        ["", "ratio", "GB/s", "ms"], cells
    )


def _schedules(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["contender"],
            *_number([row["microseconds_a_call"]], 0),
            *_number([row["milliseconds_at_once"]], 1),
        ]
        for row in rows
    ]
    heads = ["", "one count, µs", f"{rows[0]['counts']:,} counts in one call, ms"]
    return "A schedule, called eagerly:\n\n" + _table(heads, cells)


def _growth(growth: dict[str, list[dict[str, Any]]]) -> str:
    return "\n\n".join(
        f"Growth with {axis}:\n\n"
        + _table(
            [
                axis,
                "contender",
                "by no clip",
                "ms",
                "trace s",
                "lower s",
                "compile s",
                "temporary MB",
            ],
            [
                [
                    f"{row[axis]:,}",
                    row["contender"],
                    *_number([row["ratio"]]),
                    *_number([row["milliseconds"]], 1),
                    *_number(
                        [
                            row[stage]
                            for stage in ("trace_seconds", "lower_seconds", "compile_seconds")
                        ]
                    ),
                    *_number([row["temporary_megabytes"]], 0),
                ]
                for row in rows
            ],
        )
        for axis, rows in growth.items()
    )


_PIECES = {"norm": _norm, "clip": _clip, "schedules": _schedules, "growth": _growth}


def _is_reference(row: dict[str, Any]) -> bool:
    return row["contender"] == row["reference"]


def _number(values: Iterable[float | None], digits: int = 2) -> list[str]:
    return [NOTHING if value is None else f"{value:,.{digits}f}" for value in values]


def _table(heads: list[str], cells: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""The results as Markdown tables: what `README.md` beside this file explains and holds."""

import fractions
from typing import Any

from tests.benchmarks.jax_steps import OURS, REFERENCE
from tests.benchmarks.workloads import WORKLOADS

#: In place of a number that is not known.
NOTHING = "-"
STAGES = ("trace_seconds", "lower_seconds", "compile_seconds")
#: Head, name and format of the numbers of a row.
Column = tuple[str, str, str]
CONTENDER: Column = ("contender", "contender", "")
RATIO: Column = ("by no clip", "ratio", ",.2f")
MILLISECONDS: Column = ("ms", "milliseconds", ",.1f")
SPEED: Column = ("GB/s", "gigabytes_per_second", ",.1f")
BUILDING: tuple[Column, ...] = (
    ("trace s", "trace_seconds", ",.2f"),
    ("lower s", "lower_seconds", ",.2f"),
    ("compile s", "compile_seconds", ",.2f"),
    ("temporary MB", "temporary_megabytes", ",.0f"),
)


def markdown(results: dict[str, Any]) -> str:
    """Every part of `results` that was measured."""
    parts = [_machine(results["machine"])]
    if steps := results["steps"]:
        parts += [_summary(steps), _compiling(steps)]
        parts += [_step(name, step) for name, step in steps.items()]
    if rows := results.get("norm"):
        title = "The norm alone, of GPT-2 small in float32"
        share = ("of the fastest sum", "share", ".0%")
        parts.append(_rows(title, rows, ("", *CONTENDER[1:]), SPEED, MILLISECONDS, share))
    if rows := results.get("clip"):
        title = "The clip alone, of GPT-2 small in float32, donated"
        ratio = ("ratio", *RATIO[1:])
        parts.append(_rows(title, rows, ("", *CONTENDER[1:]), ratio, SPEED, MILLISECONDS))
    if rows := results.get("schedules"):
        singly = ("one count, µs", "microseconds_a_call", ",.0f")
        at_once = (f"{rows[0]['counts']:,} counts in one call, ms", "milliseconds_at_once", ",.1f")
        title = "A schedule, called eagerly"
        parts.append(_rows(title, rows, ("", *CONTENDER[1:]), singly, at_once))
    for axis, rows in results.get("growth", {}).items():
        columns = ((axis, axis, ",d"), CONTENDER, RATIO, MILLISECONDS, *BUILDING)
        parts.append(_rows(f"Growth with {axis}", rows, *columns))
    return "\n\n".join(parts)


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
    of_steps = [
        {row["contender"]: row["ratio"] for row in step["rows"] if not _is_reference(row)}
        for step in steps.values()
    ]
    cells = [["limit by memory traffic", *(_fraction(step["limit"]) for step in steps.values())]]
    for name in dict.fromkeys(name for ratios in of_steps for name in ratios):
        cells.append([name, *(_number(ratios.get(name)) for ratios in of_steps)])
    whole = "our whole step by PyTorch's with its best optimizer"
    cells.append([whole, *(_number(_against_torch(step)) for step in steps.values())])
    title = "Step with clip / the same library's step without clip"
    return _table(title, ["", *map(title_of, steps)], cells)


def _compiling(steps: dict[str, Any]) -> str:
    """The workloads side by side: the seconds that each clip in JAX adds to those of the step
    without.
    """
    by_name = [
        {row["contender"]: row for row in step["rows"] if row["compile_seconds"] is not None}
        for step in steps.values()
    ]
    names = dict.fromkeys(name for rows in by_name for name in rows if name != REFERENCE)
    cells = [
        [name, *(_added(rows.get(name), rows[REFERENCE]) for rows in by_name)] for name in names
    ]
    title = "Seconds of compiling that a clip adds (with tracing and lowering)"
    return _table(title, ["", *map(title_of, steps)], cells)


def _added(row: dict[str, Any] | None, reference: dict[str, Any]) -> str:
    if row is None:
        return NOTHING
    *others, compiling = (row[stage] - reference[stage] for stage in STAGES)
    return f"{compiling:.1f} ({sum(others, compiling):.1f})"


def _against_torch(step: dict[str, Any]) -> float | None:
    """Our clip and optimizer by PyTorch's clip and the faster of its optimizers. None without
    PyTorch.
    """
    ratios = [
        row["ratio_to_ours"]
        for row in step["rows"]
        if row["contender"].startswith("PyTorch") and not _is_reference(row)
    ]
    return 1 / min(ratios) if ratios else None


def title_of(name: str) -> str:
    """A workload as it is called in tables."""
    return WORKLOADS[name].title if name in WORKLOADS else name


def _step(name: str, step: dict[str, Any]) -> str:
    columns = (
        *(CONTENDER, RATIO, (f"by {OURS}", "ratio_to_ours", ",.2f"), MILLISECONDS, *BUILDING),
        *(("peak MB", "peak_megabytes", ",.0f"), ("page faults", "page_faults", ",.0f")),
    )
    return _rows(f"{title_of(name)} (limit {_fraction(step['limit'])})", step["rows"], *columns)


def _fraction(limit: float | None) -> str:
    """A limit as it is reasoned out: 8/7."""
    return NOTHING if limit is None else str(fractions.Fraction(limit).limit_denominator(20))


def _is_reference(row: dict[str, Any]) -> bool:
    return row["contender"] == row["reference"]


def _number(value: Any, form: str = ",.2f") -> str:
    return NOTHING if value is None else format(value, form)


def _rows(title: str, rows: list[dict[str, Any]], *columns: Column) -> str:
    cells = [[_number(row[name], form) for _, name, form in columns] for row in rows]
    return _table(title, [head for head, *_ in columns], cells)


def _table(title: str, heads: list[str], cells: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *cells]
    return f"{title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

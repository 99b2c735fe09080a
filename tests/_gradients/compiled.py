"""What a compiled program does with the arrays it is given."""

import re
from typing import Any


def readers(compiled: Any, parameter: str) -> list[str]:
    """What reads a parameter of the main computation, other than to hand it to a branch."""
    program = compiled.as_text()
    main = program[program.index("\nENTRY ") :]
    names = re.findall(rf"%(\S+) = .* parameter\(\d+\).*op_name=\"{re.escape(parameter)}", main)
    assert len(names) == 1, main
    using = re.compile(rf" = .*? ([a-z-]+)\(.*%{re.escape(names[0])}\b")
    return [found[1] for line in main.splitlines() if (found := using.search(line)) and found[1] != "tuple"]

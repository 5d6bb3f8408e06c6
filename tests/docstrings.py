"""Check that no docstring opens with a question word. A docstring states what the thing does or is.

Run by `make check`, as `python -m tests.docstrings`. It prints each offence and exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUESTION = re.compile(r"(What|Whether|How|Who|Which|Where)\b")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring: of modules, classes, functions and annotated fields."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        previous: ast.stmt | None = None
        for statement in node.body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))) if previous is None or (
                    isinstance(node, ast.ClassDef) and isinstance(previous, ast.AnnAssign)
                ):
                    yield statement.lineno, text.strip()
            previous = statement


def main() -> int:
    """Print every offence; return the exit code."""
    found = False
    for package in ("gateway", "distill", "loadtests", "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "node_modules" in path.parts:
                continue
            for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
                if QUESTION.match(text):
                    found = True
                    print(f"{path.relative_to(ROOT)}:{line}: opens with a question word: {text.splitlines()[0]}")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())

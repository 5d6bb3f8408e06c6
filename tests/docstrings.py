"""Check that no docstring opens with a question word. A docstring states what the thing does or is.

Run by `make check`, as `python -m tests.docstrings`. It prints the count of each room and exits with 1 where a room
outside NOT_YET_DONE has an offence. `python -m tests.docstrings gateway/api` lists the offences of that room.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUESTION = re.compile(r"(What|Whether|How|Who|Which|Where)\b")
# Rooms whose docstrings are being rewritten. The list only shrinks; it goes when it is empty.
NOT_YET_DONE = frozenset(
    {
        "distill",
        "distill/cli",
        "distill/forget",
        "tests/distill",
    }
)


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


def room_of(path: Path) -> str:
    """Return the folder two levels below the repository's root, or one level where the file lies there."""
    return "/".join(path.parent.parts[:2])


def main() -> int:
    """Print offences and counts; return the exit code."""
    counts: Counter[str] = Counter()
    failed = False
    for package in ("gateway", "distill", "loadtests", "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if "node_modules" in relative.parts:
                continue
            for line, text in docstrings(ast.parse(path.read_text())):
                if QUESTION.match(text):
                    room = room_of(relative)
                    counts[room] += 1
                    failed = failed or room not in NOT_YET_DONE
                    if room not in NOT_YET_DONE or room in sys.argv[1:]:
                        print(f"{relative}:{line}: a docstring opens with a question word: {text.splitlines()[0]}")
    for room, count in sorted(counts.items()):
        print(f"{room}: {count}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""The check of docstrings: it finds each kind, and question words only at their beginning."""

import ast

import pytest

from tests.docstrings import QUESTION, docstrings

SOURCE = '''
"""module"""
"not a docstring"
class A:
    """class"""
    field: int = 0
    """field"""
    other = 0
    """not of an annotated field"""
    def method(self):
        """method"""
        "not a docstring"
async def function():
    """function"""
'''


def test_docstrings_of_modules_classes_functions_and_fields_are_found() -> None:
    assert {"module", "class", "field", "method", "function"} == {text for _, text in docstrings(ast.parse(SOURCE))}


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [("What it is.", True), ("How: so.", True), ("Whatever.", False), ("Return what it is.", False), ("whose", False)],
)
def test_a_question_word_is_refused_at_the_beginning_only(text: str, is_refused: bool) -> None:
    assert is_refused == bool(QUESTION.match(text))

"""The documentation: generated parts are up to date, links lead somewhere, and named files exist."""

import re
from pathlib import Path

import pytest

from distill import settings as night_settings
from gateway import settings as gateway_settings
from tests import docs
from tests.docs import ROOT

ROOMS = ("gateway", "distill", "loadtests", "docker")
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
each_current_page = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:gateway|distill|loadtests|docker|tests)/[\w./-]*")
_MADE_BY_OPERATORS = {"docker/.env", "docker/keys"}


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", docs.pages())
def test_the_generated_parts_of_a_page_are_up_to_date(page: str) -> None:
    """`python -m tests.docs` writes them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, content in docs.pages()[page].items():
        _, found, _ = text.split(f"<!-- {name} -->")
        assert content.strip() == found.strip()


@pytest.mark.parametrize("path", docs.files())
def test_a_generated_file_is_up_to_date(path: str) -> None:
    """`python -m tests.docs` writes it."""
    assert docs.files()[path] == (ROOT / path).read_text(encoding="utf-8")


def test_a_newcomer_reads_180_lines_at_most() -> None:
    """README is for newcomers; everything else has a page of its own."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@each_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """A moved file or a renamed heading breaks no link unnoticed."""
    broken = []
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert [] == broken


@each_current_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """Paths in backticks, from the repository's root, follow the code; CHANGELOG names files as they were."""
    codes = _CODE.findall(page.read_text(encoding="utf-8"))
    paths = [code for code in codes if _PATH.fullmatch(code) and code not in _MADE_BY_OPERATORS]
    assert [] == [path for path in paths if not (ROOT / path).exists()]
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert [] == [code for code in codes if re.fullmatch(r"test_\w+\.py", code) and code not in tests]


@each_current_page
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    """CHANGELOG names settings that are gone; groups of settings end with an ellipsis."""
    known = {*gateway_settings.variables(), *night_settings.variables()}
    named = re.findall(r"\b(?:GATEWAY|DISTILL)_[A-Z_]*[A-Z]\b(?![_…])", page.read_text(encoding="utf-8"))
    assert [] == [name for name in named if name not in known]


def test_the_changelog_holds_changes_only() -> None:
    """Negative results are in loadtests/README.md; a merge by union may bring a deleted section back."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert [] == [heading for heading in headings if "Tried" in heading]

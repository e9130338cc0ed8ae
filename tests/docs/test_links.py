"""Links between the Markdown files, and into the code: what they name is there, headings included."""

import re
from pathlib import Path

import pytest
from commands import ROOT

PAGES = [path for folder in (ROOT, ROOT / "docs", ROOT / "examples") for path in sorted(folder.glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """What a Markdown file's headings are called in links."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_linked_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    todo = list(reached)
    while todo:
        page = todo.pop()
        for name in re.findall(r"\]\((?!https?:)([^)\s#]+\.md)", page.read_text(encoding="utf-8")):
            found = (page.parent / name).resolve()
            if found not in reached:
                reached.add(found)
                todo.append(found)
    assert {page.resolve() for page in PAGES} == {page.resolve() for page in reached}

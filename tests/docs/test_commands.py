"""Commands, files and links that the documentation names exist."""

import re
import tomllib
from pathlib import Path

import pytest
from commands import ROOT, fenced

from asynclm.proxy.cli import COMMANDS, main
from asynclm.proxy.config import load

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def name(path: Path) -> str:
    return path.name


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_there(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for block in fenced(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`", page.read_text(encoding="utf-8"))
    for target in [line.split()[1] for line in lines if re.match("make [a-z]", line)]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for line in [line for line in lines if line.startswith("asynclm ")]:
        _, command, *rest = line.partition(" #")[0].split()
        assert command in COMMANDS, command
        action = rest[:1] if command in ("runs", "bench", "cache", "tools") else []
        with pytest.raises(SystemExit) as end:
            main([command, *action, "--help"])
        assert end.value.code == 0, line
        said = capsys.readouterr().out
        assert [flag for flag in rest if flag.startswith("--") and flag not in said] == [], line


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "toml")], ids=name)
def test_configs_are_valid(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(fenced(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        config = load(path, {}, tmp_path)
        tree = tomllib.loads(text)
        assert set(config.upstreams) == set(tree.get("upstreams", ["main"]))
        assert len(config.tools) == len(tree.get("tools", []))

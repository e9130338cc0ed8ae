"""The Dockerfile, as far as it can be tried without an engine: its context, its command, its health check."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import ROOT, listening

from asynclm.proxy.cli import main

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instruction(name: str) -> list[str]:
    """The arguments of an instruction in exec form."""
    (found,) = re.findall(rf"^{name} [^\[\n]*(\[.*\])$", DOCKERFILE, re.MULTILINE)
    arguments: list[str] = json.loads(found)
    return arguments


def test_the_context_holds_what_pip_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert kept == {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *folders}


def test_it_runs_as_nobody_special() -> None:
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[-1] != "0"


def test_its_command_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entrypoint, command = instruction("ENTRYPOINT"), instruction("CMD")
    assert entrypoint == ["asynclm"]
    assert command[:2] == ["serve", "--config"]
    assert main([*command[:2], str(tmp_path / "none.toml")]) == 2
    assert "the config can't be read" in capsys.readouterr().err


def test_its_health_check_tells_a_proxy_from_none() -> None:
    python, *arguments = instruction("HEALTHCHECK")
    assert python == "python"
    with listening("serve", "--config", "examples/asynclm.toml", "--port", "0", cwd=ROOT) as url:
        port = url.split(":")[2].split("/")[0]
        check = [sys.executable, *(argument.replace("8787", port) for argument in arguments)]
        assert subprocess.run(check, check=False).returncode == 0
    assert subprocess.run(check, check=False, capture_output=True).returncode != 0

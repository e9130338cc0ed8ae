"""A Python tool's version changes with its source."""

import functools
from pathlib import Path
from typing import Any

from asynclm.adapters.tools.options import Options, tool
from asynclm.adapters.tools.python import PythonTool, load
from asynclm.adapters.tools.source_version import source_version

SOURCE = '''
FACTOR = 2

def double(x: int) -> int:
    """Double it."""
    return FACTOR * x

class Service:
    def look(self, key: str) -> str:
        return key

    def __call__(self, key: str) -> str:
        return key

service = Service()
'''


def version(folder: Path, source: str, function: str = "double", **options: Any) -> str | None:
    folder.mkdir(exist_ok=True)
    (folder / "tools.py").write_text(source)
    return load(f"tools.py:{function}", folder, Options(**options)).spec.version


def test_of_a_function_in_a_file(tmp_path: Path) -> None:
    first = version(tmp_path / "a", SOURCE)
    assert first is not None
    assert version(tmp_path / "b", SOURCE) == first  # wherever it lies
    assert version(tmp_path / "c", SOURCE.replace("FACTOR = 2", "FACTOR = 3")) != first
    assert version(tmp_path / "d", SOURCE, "service.look") not in (None, first)
    assert version(tmp_path / "e", SOURCE, "service", name="served") not in (None, first)


def test_a_declared_one_wins(tmp_path: Path) -> None:
    assert version(tmp_path / "a", SOURCE, version="3") == "3"

    @tool(version="4")
    def declared(x: int) -> int:
        return x

    assert PythonTool(declared).spec.version == "4"
    assert PythonTool(declared, Options(version="5")).spec.version == "5"


def test_of_code_without_a_file() -> None:
    def made(code: str) -> str | None:
        names: dict[str, Any] = {}
        exec(f"def f(x):\n    return {code}", names)
        return source_version(names["f"])

    assert made("x + 1") == made("x + 1") != made("x + 2")


def test_what_a_partial_fixes_counts() -> None:
    def f(x: int, y: int) -> int:
        return x + y

    assert source_version(functools.partial(f, y=1)) == source_version(functools.partial(f, y=1))
    assert source_version(functools.partial(f, y=1)) != source_version(functools.partial(f, y=2))


def test_a_decorated_function_is_the_one_beneath() -> None:
    def f(x: int) -> int:
        return x

    @functools.wraps(f)
    def wrapper(x: int) -> int:
        return f(x)

    assert source_version(wrapper) == source_version(f)


def test_what_is_written_in_c_has_none() -> None:
    assert source_version(len) is None

"""From a reference in the config to a tool."""

import sys

import pytest

from asynclm.adapters.tools.options import Options, ToolDefinitionError
from asynclm.adapters.tools.python import load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


async def test_a_file_relative_to_the_base(folder):
    write(
        folder,
        "my tools/math.py",  # a name that `import` could not write, and that the standard library has too
        """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Point:
    x: int

def double(point: Point) -> int:
    "Double it."
    return point.x * 2
""",
    )
    tool = load("my tools/math.py:double", folder, Options(estimate_ms=3))
    assert (tool.spec.name, tool.spec.description, tool.spec.estimate_ms) == ("double", "Double it.", 3)
    assert await tool.run({"point": {"x": 4}}) == 8
    import math

    assert math.sqrt(4) == 2


async def test_a_file_is_imported_once_and_files_of_one_name_are_kept_apart(folder):
    counting = "calls = []\ndef add():\n    calls.append(1)\n    return len(calls)\n"
    write(folder, "a/tools.py", counting)
    write(folder, "b/tools.py", counting)
    first, again = load("a/tools.py:add", folder), load(str(folder / "b/../a/tools.py") + ":add", folder)
    other = load("b/tools.py:add", folder)
    assert [await first.run({}), await again.run({}), await other.run({})] == [1, 2, 1]


async def test_a_module_beside_the_config_that_imports_another(folder):
    write(folder, "asynclm_test_pack/__init__.py", "")
    write(folder, "asynclm_test_pack/inner.py", "N = 5\n")
    write(folder, "asynclm_test_pack/tools.py", "from .inner import N\ndef get():\n    return N\n")
    assert await load("asynclm_test_pack.tools:get", folder).run({}) == 5
    write(folder, "one.py", "from asynclm_test_pack.inner import N\ndef get():\n    return N\n")
    assert await load("one.py:get", folder).run({}) == 5


async def test_an_installed_module(folder):
    assert load("json:dumps", folder, Options(name="dump")).spec.name == "dump"


async def test_dotted_attributes(folder):
    write(
        folder,
        "shop.py",
        """
class Shop:
    def __init__(self): self.stock = 3
    def count(self): return self.stock
    @classmethod
    def named(cls): return cls.__name__
    @staticmethod
    def fixed(): return 1
    class Inner:
        @staticmethod
        def deep(): return 2
shop = Shop()
""",
    )
    references = ["shop.py:shop.count", "shop.py:Shop.named", "shop.py:Shop.fixed", "shop.py:Shop.Inner.deep"]
    assert [await load(r, folder).run({}) for r in references] == [3, "Shop", 1, 2]


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("tools.py", 'a tool is named as "path/to/file.py:function"'),
        ("tools.py:", "a tool is named as"),
        (":f", "a tool is named as"),
        ("tools.py:f()", "a tool is named as"),
        ("missing.py:f", "there is no file .*missing.py"),
        ("sub:f", "there is no module 'sub'"),
        ("no.such.module:f", "there is no module 'no'"),
        ("asynclm.nothing:f", "there is no module 'asynclm.nothing'"),
        ("tools.py:forcast", "it has no 'forcast'; did you mean 'forecast'"),
        ("tools.py:Shop.cuont", "'Shop' has no 'cuont'; did you mean 'count'"),
        ("tools.py:Shop.count", "'Shop.count' needs an instance"),
        ("tools.py:Shop", "Shop is a class"),
        ("tools.py:LIMIT", "'LIMIT' is not a function but of type int"),
        ("tools.py:variadic", r"variadic: parameter \*args can't"),
        ("raises.py:f", r"importing .*raises.py failed: ZeroDivisionError: division by zero \(raises.py, line 2\)"),
        ("exits.py:f", "importing .*exits.py failed: SystemExit: 3"),
        ("syntax.py:f", r"importing .*syntax.py failed: SyntaxError: .*\(syntax.py, line 1\)"),
        ("imports.py:f", "importing .*imports.py failed: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_reference(folder, reference, why):
    write(
        folder,
        "tools.py",
        "LIMIT = 3\nclass Shop:\n    def count(self): ...\ndef forecast(): ...\ndef variadic(*args): ...\n",
    )
    write(folder, "raises.py", "x = 1\ny = 1 / 0\n")
    write(folder, "exits.py", "raise SystemExit(3)\n")
    write(folder, "syntax.py", "def f(:\n")
    write(folder, "imports.py", "import not_there\n")
    with pytest.raises(ToolDefinitionError, match=why) as caught:
        load(reference, folder)
    assert str(caught.value).startswith(f"{reference}: ")
    assert "\n" not in str(caught.value)


async def test_a_file_that_failed_is_tried_anew(folder):
    path = write(folder, "tools.py", "1 / 0\n")
    with pytest.raises(ToolDefinitionError):
        load("tools.py:f", folder)
    path.write_text("def f(): return 'mended now'\n")
    assert await load("tools.py:f", folder).run({}) == "mended now"

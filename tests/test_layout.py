"""The packages' layers, and that each is complete."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT

LAYERS = ("cml", "adapters", "proxy", "bench")  # each may import those before it
MAX_LINES = 500


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, inside functions too."""
    package = ["asynclm", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str | None:
    """The layer of ours that a module belongs to; None for what isn't ours."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "asynclm" else None


@pytest.mark.parametrize("path", modules(*LAYERS), ids=name)
def test_imports_never_run_upwards(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    allowed = LAYERS[: LAYERS.index(own) + 1]
    for module in imports(path):
        layer = layer_of(module)
        if layer is not None:
            assert layer in allowed, f"{own} imports {module}"
        elif own == "cml":
            top = module.partition(".")[0]
            assert top in sys.stdlib_module_names or top == "msgspec", f"cml imports {module}"


def test_every_package_is_installed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in modules(*LAYERS)}
    assert sorted(tool["packages"]) == sorted(".".join(["asynclm", *folder.parts]) for folder in folders)
    assert tool["package-dir"] == {f"asynclm.{layer}": layer for layer in LAYERS}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_typed(layer: str) -> None:
    assert (ROOT / layer / "py.typed").is_file()


@pytest.mark.parametrize("path", modules(*LAYERS), ids=name)
def test_no_file_is_long(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{lines} lines: what in it deserves a file of its own?"

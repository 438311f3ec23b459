"""The import direction of the house, read from the source: also imports inside functions and under TYPE_CHECKING."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A part may import from itself and from those on lines before its own; `_*` are the modules of the root that all share.
LEVELS = [
    {"_*"},
    {"gates"},
    {"gram"},
    {"ntk", "networks"},
    {"convex"},
    {"training", "estimators"},
    {"tables"},
    {"verify"},
    {"cli"},
]
FILES = sorted((ROOT / "fixntk").rglob("*.py"))


def part_of(module):
    """The part of the house that a dotted module name belongs to."""
    name = module.split(".")[1] if "." in module else "fixntk"
    return "_*" if name.startswith("_") and name != "__init__" else name


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(path):
    """Every module of the project that a file imports, a submodule taken with ``from package import`` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else node.module


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def allowed(part):
    if part == "runner":
        return {"_*", "runner"}
    if part in {"cli", "__init__"}:
        return set.union(*LEVELS, {"runner", "fixntk", "plots"})
    if part == "plots":
        return {"fixntk", "_*", "plots"}
    (position,) = [i for i, level in enumerate(LEVELS) if part in level]
    return set.union(set(), *LEVELS[:position]) | {part}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path):
    part = part_of(module_of(path))
    for name in imports_of(path):
        assert not name.startswith("experiments"), f"{path} imports {name}"
        if name.split(".")[0] == "fixntk":
            assert part_of(name) in allowed(part), f"{path} imports {name}"


def test_no_circle_of_modules():
    graph = {module_of(path): {n for n in imports_of(path) if n.startswith("fixntk.")} for path in FILES}
    done: set = set()

    def visit(module, way):
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, [*way, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_the_root_stays_small():
    assert len(list((ROOT / "fixntk").glob("*.py"))) <= 10

"""Annotations of the public names can be evaluated, as type checkers at run time and documentation tools do."""

import importlib
import inspect
import pkgutil
import typing

import pytest

import fixntk

MODULES = [fixntk] + [
    importlib.import_module(module.name) for module in pkgutil.walk_packages(fixntk.__path__, "fixntk.")
]


def is_own(value):
    """Whether fixntk defines it, rather than a package that it inherits from or decorates with."""
    return (getattr(value, "__module__", None) or "").split(".")[0] == "fixntk"


def public_names(module):
    """The names in ``__all__``; without it those that the module defines and that begin with a letter."""
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return getattr(module, "__all__", defined)


def methods_of(cls):
    """The functions behind a class's methods and properties, also those of its bases in fixntk."""
    for base in filter(is_own, cls.__mro__):
        for name, member in vars(base).items():
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            function = inspect.unwrap(member)
            if inspect.isfunction(function) and is_own(function):
                yield f"{base.__module__}.{base.__name__}.{name}", function


def public_things():
    """Public functions and classes with the methods of the classes, by the name of the place that defines them."""
    found = {}
    for module in MODULES:
        for value in [getattr(module, name) for name in public_names(module)]:
            thing = inspect.unwrap(value) if callable(value) else value
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and is_own(thing):
                found[f"{thing.__module__}.{thing.__name__}"] = thing
            if inspect.isclass(thing):
                found |= methods_of(thing)
    return found


THINGS = public_things()


@pytest.mark.parametrize("name", sorted(THINGS))
def test_type_hints_can_be_evaluated(name):
    typing.get_type_hints(THINGS[name])


def test_functions_behind_jit_classes_and_methods_are_among_the_public_things():
    names = {"fixntk.convex.solve.solve", "fixntk.gram.masked_gram", "fixntk.gram.MaskedGram.to_dense"}
    assert names | {"fixntk.runner.rows.read_rows", "fixntk.cli.main"} <= THINGS.keys()

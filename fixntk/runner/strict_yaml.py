"""The part of YAML that configs are written in, read in bounded time.

Scalars are read as in YAML 1.1, as PyYAML does, with these differences: 1e-6 is a number, as in YAML 1.2; dates are
text; a key is its text and is given once. Tags beyond those of JSON are refused, and aliases (``*name``) that stand for
too many values or for themselves.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

# Largest size of a text. PyYAML reads about 50 kB in a second.
MAX_BYTES = 16_384
# Largest number of mappings and sequences inside one another.
_MAX_DEPTH = 32
# Largest number of values, those that aliases repeat included.
_MAX_VALUES = 20_000
# Largest number of characters of a number.
_MAX_NUMBER_CHARACTERS = 100

_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


def parse(text: str) -> Any:
    """Return the value of a text: None, bool, int, float, str, or lists of these and dicts with text as keys.

    Raises
    ------
    yaml.YAMLError
        If the text is not YAML, or of a part of YAML that is left out here. See :func:`describe`.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError) as error:
        # PyYAML's scanner, for an escape such as "\\U00110000".
        raise yaml.YAMLError("an escape stands for no character") from error


def describe(error: yaml.YAMLError) -> str:
    """A problem of a text and its place, in one line that continues the name of the text."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f", line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"
    return ": " + str(error).splitlines()[0]


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # Number of values so far, and within each node that is complete.
        self._num_values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, is_alias, before = self.peek_event().start_mark, self.check_event(yaml.AliasEvent), self._num_values
        if self._depth == _MAX_DEPTH:
            raise ComposerError(None, None, f"more than {_MAX_DEPTH} levels inside one another", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise ComposerError(None, None, "an alias stands for a value that contains it", mark)
        self._num_values += self._sizes[id(node)] if is_alias else 1
        if self._num_values > _MAX_VALUES:
            raise ComposerError(None, None, f"more than {_MAX_VALUES} values, with those that aliases repeat", mark)
        if isinstance(node, yaml.ScalarNode) and any("\ud800" <= character <= "\udfff" for character in node.value):
            raise ComposerError(None, None, f"{reprlib.repr(node.value)} has half of a surrogate pair", mark)
        self._sizes.setdefault(id(node), self._num_values - before)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            raise ConstructorError(None, None, f"the tag {reprlib.repr(node.tag)} is not allowed here", node.start_mark)
        is_number = node.tag.endswith((":int", ":float"))
        try:
            if is_number and len(node.value) > _MAX_NUMBER_CHARACTERS:
                raise ValueError
            return super().construct_object(node, deep)
        # What PyYAML raises where an explicit tag does not fit its text, as in !!int "", and for 0b_.
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            problem = f"{reprlib.repr(node.value)} is not a valid {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, "a mapping is expected here", node.start_mark)
        mapping = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in mapping:
                problem = f"the key {reprlib.repr(key.value)} is given twice"
                raise ConstructorError(None, None, problem, key.start_mark)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping


# As PyYAML finds tags by the first character of a scalar; without those of dates, << and =.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)

"""YAML that says one thing: a key that is there twice in a mapping is a mistake, not the last one's."""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str) -> Any:
    """What the text says, in plain types. Raises yaml.YAMLError for what is no YAML, and for a key that is there twice.

    What a merge key (`<<`) brings may be given anew, as YAML has it.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError, RecursionError) as error:  # a date that is none; a number or a nest too large
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's own, which goes through every mapping once more: its constructor lets the last of equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in lines:
                what = f"the key {key!r} is there twice, first on line {lines[key]}"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

"""Settings as a report shows them: those that differ from their defaults apart, the rest by section."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pretrain.report.run_data import RunFiles, flat
from pretrain.settings import TrainSettings

_OWN = "settings."  # the paths of a run's settings; others are what followed from them
_ABSENT = object()


@dataclass(frozen=True)
class ShownSettings:
    """A run's settings: `changed` rows (path, value, default), and by section rows (path, value) of the others."""

    changed: list[tuple[str, str, str]]
    sections: dict[str, list[tuple[str, str]]]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.changed) + sum(map(len, self.sections.values()))


def shown_settings(run: RunFiles) -> ShownSettings:
    """A run's settings, and as section "derived" what followed from them; without the identity, a copy of some."""
    changed: list[tuple[str, str, str]] = []
    sections: dict[str, list[tuple[str, str]]] = {}
    for path, value in run.settings.items():
        name = path.removeprefix(_OWN)
        if path.startswith(_OWN) and _default(name) != value:
            changed.append((name, as_text(value), _default_text(name)))
        elif path.startswith((_OWN, "derived.")):
            section = name.partition(".")[0] if "." in name else "run"
            sections.setdefault(section, []).append((name, as_text(value)))
    return ShownSettings(changed, dict(sorted(sections.items(), key=lambda item: (item[0] == "derived", item[0]))))


def differing_settings(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, each with its value in every run; without their folders' names."""
    paths = dict.fromkeys(path for run in runs for path in run.settings if path.startswith(_OWN))
    sections = {parent for path in paths for parent in _parents(path)}  # null in a run that does not have them
    rows = [
        (path.removeprefix(_OWN), [run.settings.get(path, _ABSENT) for run in runs])
        for path in paths
        if path != f"{_OWN}run" and path not in sections
    ]
    return [(path, list(map(as_text, values))) for path, values in rows if any(v != values[0] for v in values[1:])]


def as_text(value: Any) -> str:
    """A setting's value as a recipe would write it; a dash for one that a run does not have."""
    if value is _ABSENT:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def _defaults() -> Mapping[str, Any]:
    """The defaults of a run's settings by dotted path; what has none is missing."""
    values = dict(flat(TrainSettings.model_validate({"data": {"store": "-"}}).model_dump(mode="json")))
    del values["data.store"]
    return values


def _default(path: str) -> Any:
    """A setting's default; of what lies below a section that is null unless set, that it is not there."""
    return _defaults().get(path, _ABSENT)


def _default_text(path: str) -> str:
    value = _default(path)
    if value is _ABSENT and any(_default(parent) is None for parent in _parents(path)):
        return "null"
    return as_text(value)


def _parents(path: str) -> list[str]:
    names = path.split(".")
    return [".".join(names[:length]) for length in range(1, len(names))]

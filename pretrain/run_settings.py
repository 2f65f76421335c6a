"""A run's settings.json and classes.json: what they hold, and how they are read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
from pydantic import Field

from sharding.base.errors import UserError
from sharding.base.settings import differences
from sharding.base.text import nfc, read_json

SETTINGS, CLASSES = "settings.json", "classes.json"
FORMAT = 1
_CHANGES_SHOWN = 6
_RESTORE = "restore the file (checkpoint.store has a copy, where one is set), or name a new folder: run=runs/NAME"
_IMPORT = "make a run of weights first, reelscale import FILE RUN, and name that one"
_RENAMED = {  # settings that runs written before have under another name, and their name now
    ("data", "reading", "way"): "mode",
    ("data", "loader", "ahead"): "prefetch",
    ("engine", "path"): "compute_path",
}
_A_RUN = "give the folder that `reelscale pretrain` or `finetune` printed"


class Recipe(NamedTuple):
    """The name of the file that a run's settings came from, and what it says is to be expected; "" of none."""

    name: str = ""
    expected: str = ""


class RunSettings(pydantic.BaseModel):
    """The content of settings.json."""

    model_config = pydantic.ConfigDict(extra="allow")

    format: int = FORMAT
    settings: Annotated[dict[str, Any], Field(description="as the run has them now")]
    identity: Annotated[dict[str, Any], Field(description="what may not change while it goes on")]
    derived: dict[str, Any] = {}
    threads: Annotated[int | None, Field(ge=1, description="that the first rank began to compute with")] = None
    id: Annotated[str, Field(description="by which others know the run, however often it is started")] = ""
    stored: Annotated[
        dict[str, Any] | None,
        Field(description="by which settings of `shard` its videos are stored"),
    ] = None

    recipe: Annotated[str, Field(description="name of the file that the settings came from")] = ""
    expected: Annotated[str, Field(description="what that file says is to be expected of the run")] = ""

    def began_with(self, where: str) -> dict[str, Any]:
        """The data settings that the run began with, "index" (versions of its stores' indexes) among them."""
        data = self.identity.get("data")
        index = data.get("index") if isinstance(data, dict) else None
        if not isinstance(index, list) or not all(isinstance(version, str) for version in index):
            what = f"the run's {SETTINGS} is damaged: identity.data.index is no list of versions"
            raise UserError(what, where, _RESTORE)
        return dict(data or {})


def parse_settings(data: bytes, where: str) -> RunSettings:
    """The content of a settings.json, the settings under the names they have now.

    Raises UserError for a damaged one, or another version's.
    """
    run = read_json(data, RunSettings, f"the run's {SETTINGS}", where, _RESTORE, FORMAT)
    return run.model_copy(update={"settings": with_current_names(run.settings)})


def with_current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of a run's stored settings in which those that have since been renamed have the name they have now."""
    renamed = copy.deepcopy(settings)
    for (*sections, before), name in _RENAMED.items():
        section: Any = renamed
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and before in section:
            section.setdefault(name, section.pop(before))
    return renamed


def with_former_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of settings in which those that have been renamed have the names that earlier versions knew."""
    former = copy.deepcopy(settings)
    for (*sections, before), name in _RENAMED.items():
        section: Any = former
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            section[before] = section.pop(name)
    return former


def read_settings_file(folder: Path) -> RunSettings:
    """RUN/settings.json. Raises UserError if the folder is no run's, or the file is damaged or another version's."""
    return parse_settings(_read(folder / SETTINGS), str(folder / SETTINGS))


def read_classes_file(folder: Path) -> list[str]:
    """RUN/classes.json, the names in their order. Raises UserError as `read_settings_file` does."""
    path = folder / CLASSES
    return [nfc(name) for name in read_json(_read(path), list[str], f"the run's {CLASSES}", str(path), _RESTORE)]


def identity_changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first differences of two identities, for a message ("seed: 1 there, 2 here; …"); "" if they are the same."""
    changed = differences(before, now)
    return "; ".join(f"{path}: {old!r} there, {new!r} here" for path, old, new in changed[:_CHANGES_SHOWN])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"not a run's folder: {path.name} is missing", str(path.parent), _A_RUN) from error
    except NotADirectoryError as error:
        raise UserError("a file, and not a run's folder", str(path.parent), _IMPORT) from error
    except OSError as error:
        what = f"the run's {path.name} cannot be read: {error.strerror or error}"
        raise UserError(what, str(path), "look after the disk and the permissions") from error

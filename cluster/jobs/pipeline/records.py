"""What is done of a pipeline: a record for each finished stage, and what must run again because something changed."""

import datetime
import fcntl
import json
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from cluster.jobs.pipeline.plan import Plan, PlannedStage
from sharding.base.atomic import atomic_write_text
from sharding.base.errors import UserError
from sharding.base.settings import differences, digest
from sharding.base.user_paths import require_writable, writing

_SHOWN_CHANGES = 4


class StageRecord(pydantic.BaseModel):
    """That a stage has ended well: with which command line and settings, and on which records of what it needs.

    `id` distinguishes this end from every other end of the stage.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    stage: str
    id: str
    digest: str
    words: list[str]
    settings: dict[str, Any]
    needs: dict[str, str]
    finished: str
    seconds: float


@dataclass(frozen=True)
class StageState:
    """`done`; `to do`, as it has not ended well yet; or `changed`: it has, and runs again for this `reason`."""

    state: Literal["done", "to do", "changed"]
    reason: str = ""


def states(plan: Plan, records: Mapping[str, StageRecord], again: Collection[str] = ()) -> dict[str, StageState]:
    """Each stage's state, by its record and those of what it needs; a stage whose needs run again does so, too.

    `again`: stages that run again because they were named.
    """
    by_name: dict[str, StageState] = {}
    while len(by_name) < len(plan.stages):
        for stage in plan.stages:
            if stage.name not in by_name and all(need in by_name for need in stage.needs):
                needed = [need for need in stage.needs if by_name[need].state != "done"]
                by_name[stage.name] = state_of(stage, records, needed, stage.name in again)
    return {stage.name: by_name[stage.name] for stage in plan.stages}


def state_of(
    stage: PlannedStage, records: Mapping[str, StageRecord], needed: Collection[str] = (), again: bool = False
) -> StageState:
    """The state of a stage; `needed`: what it needs and is not done, `again`: whether it is to run in any case."""
    record = records.get(stage.name)
    if record is None:
        return StageState("to do")
    if again:
        return StageState("changed", "it was asked for")
    if record.digest != stage_digest(stage):
        return StageState("changed", _change(stage, record))
    lost = [*([stage.lost] if stage.lost else []), *(path for path in stage.outputs if not Path(path).exists())]
    if lost:
        return StageState("changed", f"{lost[0]} is gone")
    if needed:
        return StageState("changed", f"{', '.join(needed)} must run before")
    if record.needs != {need: records[need].id for need in stage.needs}:
        return StageState("changed", f"{', '.join(stage.needs) or 'what it needed'} ran since, or is needed no more")
    return StageState("done")


def stage_digest(stage: PlannedStage) -> str:
    """sha256 (hex) of a stage's command line and settings, those of its file included."""
    return digest({"words": list(stage.words), "settings": dict(stage.settings)})


def _change(stage: PlannedStage, record: StageRecord) -> str:
    """What differs from the command line and the settings of a record, in words."""
    changes = differences(record.settings, dict(stage.settings))
    words = [f"{path}: {_json(before)} → {_json(now)}" for path, before, now in changes[:_SHOWN_CHANGES]]
    if len(changes) > _SHOWN_CHANGES:
        words.append(f"and {len(changes) - _SHOWN_CHANGES} more")
    return ", ".join(words) or f"its command was: reelscale {' '.join(record.words)}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def record_of(stage: PlannedStage, records: Mapping[str, StageRecord], seconds: float) -> StageRecord:
    """The record of a stage that has just ended well; `records`: those of what it needs, at least."""
    return StageRecord(
        stage=stage.name,
        id=uuid.uuid4().hex,
        digest=stage_digest(stage),
        words=list(stage.words),
        settings=dict(stage.settings),
        needs={need: records[need].id for need in stage.needs},
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
    )


def record_file(folder: Path, stage: str) -> Path:
    """Where a stage's record is kept."""
    return folder / f"{stage}.json"


def log_file(folder: Path, stage: str) -> Path:
    """Where all that a stage has printed is kept, one try after the other."""
    return folder / f"{stage}.log"


def read_records(plan: Plan) -> dict[str, StageRecord]:
    """The records of the plan's stages that have ended well. Raises UserError for one that cannot be read."""
    records = {}
    for stage in plan.stages:
        file = record_file(plan.folder, stage.name)
        try:
            records[stage.name] = StageRecord.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            what = f"the record of stage {stage.name} cannot be read: it is damaged, or of another version"
            remedy = "remove it: the stage runs again, and its command goes on from what it has made"
            raise UserError(what, str(file), remedy) from error
    return records


def write_record(folder: Path, record: StageRecord) -> None:
    """Keep a record, whole or not at all. Raises UserError where it cannot be written."""
    with writing(folder, "folder"):
        atomic_write_text(record_file(folder, record.stage), json.dumps(record.model_dump(), indent=1))


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Hold a pipeline's folder, which is made where it is missing. Raises UserError if another process holds it."""
    require_writable(folder, "folder")
    with writing(folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for it, stop it, or give this one a folder of its own (folder=…)"
            raise UserError("another `reelscale run` is at work on this pipeline", str(folder), remedy) from None
        yield

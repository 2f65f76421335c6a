"""A pipeline of commands: its YAML file read, its variables put in, and every stage checked before the first starts."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.redact import require_no_password
from sharding.base.settings import Settings, load_settings, settings_tree, unit
from sharding.base.user_paths import absolute

StageCommand = Literal[
    "shard", "shards retry", "shards verify", "shards inspect", "pretrain", "finetune", "evaluate", "report", "export"
]
_CONFIG_FIRST = ("pretrain", "finetune", "evaluate")
_CONFIG_OPTION = ("shard", "shards retry")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


@dataclass(frozen=True)
class StagePaths:
    """The files and folders that a command line makes, and those that it reads, as far as it names them; or URLs."""

    made: Sequence[str] = ()
    read: Sequence[str] = ()


# A stage's command, and its line without the command → its paths. Raises UserError for a mistake in the line.
Check = Callable[[StageCommand, Sequence[str]], StagePaths]


class Stage(Settings):
    """One command of a pipeline."""

    name: Annotated[str, Field(pattern=_NAME, description="what logs, needs and the command line call the stage")]
    command: Annotated[StageCommand, Field(description="the command of reelscale that the stage runs")]
    arguments: Annotated[
        tuple[str, ...], Field(description="the command's other arguments and options, as one types them")
    ] = ()
    config: Annotated[
        str | None, Field(description="its settings file; a relative path begins at the pipeline's file")
    ] = None
    overrides: Annotated[
        tuple[str, ...], Field(description="settings as key.path=value, which win over the file's")
    ] = ()
    needs: Annotated[
        tuple[str, ...] | None, Field(description="stages that must be done before; null: the one above, if any")
    ] = None
    retries: Annotated[
        int,
        Field(json_schema_extra=unit("tries"), ge=0, le=1000, description="further tries of a stage that has failed"),
    ] = 0


class Pipeline(Settings):
    """Commands that need one another, and what they share."""

    variables: Annotated[
        dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]],
        Field(
            default_factory=dict,
            description="texts that ${name} stands for in the folder and the stages; each may use those above it",
        ),
    ]
    folder: Annotated[
        str | None, Field(description="where the stages' records and logs are kept; null: runs/NAME-OF-THE-FILE")
    ] = None
    parallel: Annotated[
        int, Field(json_schema_extra=unit("stages"), ge=1, le=1024, description="stages that may run at a time")
    ] = 1
    keep_going: Annotated[
        bool, Field(description="whether a stage that fails ends only those that need it; else all of them")
    ] = False
    stages: Annotated[
        tuple[Stage, ...], Field(min_length=1, description="the commands, in the order in which they start")
    ]


@dataclass(frozen=True)
class PlannedStage:
    """A stage as it is to run: `words` is its command line without `reelscale`, `settings` what its file and words say.

    `outputs` and `inputs` are the files and folders of this machine that it makes and reads, absolute. `lost`: what
    it makes besides and is not there, in words.
    """

    name: str
    words: tuple[str, ...]
    settings: Mapping[str, Any]
    needs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    retries: int = 0
    lost: str = ""


@dataclass(frozen=True)
class Plan:
    """A checked pipeline: its stages in their file's order, and the absolute path of its folder."""

    path: str
    folder: Path
    parallel: int
    stages: tuple[PlannedStage, ...]
    keep_going: bool = False


def load_pipeline(path: str, overrides: Sequence[str], check: Check) -> Plan:
    """The plan of a pipeline's file, changed by `variable=text`, `setting=value` and `stage.key.path=value`.

    Raises UserError for whatever can be seen to be wrong before anything has run.
    """
    pipeline = _with_overrides(path, load_settings(Pipeline, path), overrides)
    values = _values(pipeline.variables, path)

    def put_in(text: str) -> str:
        return _substituted(text, values, path)

    stages = []
    for stage in pipeline.stages:
        config = stage.config and str(Path(path).parent / _without_tilde(put_in(stage.config)))
        arguments = tuple(put_in(text) for text in stage.arguments)
        settings = tuple(put_in(text) for text in stage.overrides)
        update = {"arguments": arguments, "overrides": settings, "config": config}
        stages.append(stage.model_copy(update=update))
    folder = put_in(pipeline.folder) if pipeline.folder else f"runs/{Path(path).stem}"
    return plan_stages(path, Path(absolute(folder)), pipeline.parallel, stages, check, pipeline.keep_going)


def plan_stages(
    path: str, folder: Path, parallel: int, stages: Sequence[Stage], check: Check, keep_going: bool = False
) -> Plan:
    """The plan of stages without variables, which a file at `path` asks for. Raises UserError as `load_pipeline`."""
    needs, planned = needs_of(stages, path), []
    for stage in stages:
        try:
            planned.append(_planned(stage, needs[stage.name], check))
        except UserError as error:
            where = f"stage {stage.name} of {path}: {error.where}"
            raise UserError(error.what, where, error.remedy) from error
    _require_inputs(planned, path)
    return Plan(path, folder, parallel, tuple(planned), keep_going)


def require_stages(plan: Plan, names: Sequence[str]) -> None:
    """Raise UserError for a name that no stage of the plan has."""
    stages = [stage.name for stage in plan.stages]
    for name in names:
        if name not in stages:
            what = f"no stage is called {visible(name)}{_near(name, stages)}"
            raise UserError(what, plan.path, f"name some of {', '.join(stages)}")


def needs_of(stages: Sequence[Stage], path: str) -> dict[str, tuple[str, ...]]:
    """What each stage needs, by name. Raises UserError for a name used twice or not at all, and for a circle."""
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two stages are called {name}", path, "give each stage a name of its own")
    needs: dict[str, tuple[str, ...]] = {}
    for number, stage in enumerate(stages):
        wanted = stage.needs if stage.needs is not None else names[max(0, number - 1) : number]
        needs[stage.name] = tuple(wanted)
        for need in wanted:
            if need not in names:
                what = f"stage {stage.name} needs {visible(need)}, which is no stage{_near(need, names)}"
                raise UserError(what, path, f"name some of {', '.join(names)}")
    done: set[str] = set()
    while left := [name for name in names if name not in done]:
        ready = {name for name in left if done.issuperset(needs[name])}
        if not ready:
            what = f"these stages wait for one another, or for one of a circle: {', '.join(left)}"
            raise UserError(what, path, "take a stage out of the `needs` of another")
        done |= ready
    return needs


def _with_overrides(path: str, pipeline: Pipeline, overrides: Sequence[str]) -> Pipeline:
    """The pipeline with what the command line says: of variables, of its own settings, and of stages."""
    fields = set(Pipeline.model_fields)
    if clash := sorted(fields.intersection(pipeline.variables)):
        raise UserError(f"a variable is called as a setting is: {', '.join(clash)}", path, "give it another name")
    names = [stage.name for stage in pipeline.stages]
    variables, settings, of_stages = dict(pipeline.variables), list[str](), {name: list[str]() for name in names}
    for override in overrides:
        key, equals, text = override.partition("=")
        stage, dot, below = key.partition(".")
        if equals and key in variables:
            variables[key] = text
        elif equals and dot and stage in of_stages:
            of_stages[stage].append(f"{below}={text}")
        elif equals and key in fields - {"variables", "stages"}:
            settings.append(override)
        else:
            known_keys = [*variables, *sorted(fields - {"variables", "stages"}), *(f"{name}.KEY" for name in names)]
            what = f"{visible(override)} sets nothing of this pipeline{_near(key, [*variables, *fields])}"
            raise UserError(what, path, f"set some of {', '.join(known_keys)} as KEY=VALUE")
    if settings:
        pipeline = load_settings(Pipeline, path, settings)
    stages = [
        stage.model_copy(update={"overrides": (*stage.overrides, *of_stages[stage.name])}) for stage in pipeline.stages
    ]
    return pipeline.model_copy(update={"variables": variables, "stages": stages})


def _values(variables: Mapping[str, str], path: str) -> dict[str, str]:
    """Each variable's text, those above it put in."""
    values: dict[str, str] = {}
    for name, text in variables.items():
        values[name] = _substituted(text, values, path)
    return values


def _substituted(text: str, values: Mapping[str, str], path: str) -> str:
    for name in _VARIABLE.findall(text):
        if name not in values:
            what = f"${{{visible(name)}}} is no variable{_near(name, list(values))}"
            raise UserError(what, path, "declare it below `variables`, above what uses it")
    return _VARIABLE.sub(lambda match: values[match[1]], text)


def _without_tilde(text: str) -> str:
    return absolute(text) if text.startswith("~") else text


def _planned(stage: Stage, needs: tuple[str, ...], check: Check) -> PlannedStage:
    takes_settings = stage.command in (*_CONFIG_FIRST, *_CONFIG_OPTION)
    if not takes_settings and (stage.config or stage.overrides):
        remedy = "give it `arguments` alone, and what they share as a variable"
        raise UserError(f"{stage.command} takes no settings", "config, overrides", remedy)
    config = [] if stage.config is None else [stage.config]
    if stage.command in _CONFIG_FIRST:
        words = [*config, *stage.arguments, *stage.overrides]
    else:
        words = [*stage.arguments, *(["--config", *config] if config else []), *stage.overrides]
    for word in words:
        require_no_password(word.partition("=")[2] if "=" in word else word)
    paths = check(stage.command, words)
    settings = settings_tree(stage.config, stage.overrides) if takes_settings else {}
    plain = pydantic.TypeAdapter(Any).dump_python(settings, mode="json")
    whole = (*stage.command.split(), *words)
    return PlannedStage(stage.name, whole, plain, needs, _local(paths.made), _local(paths.read), stage.retries)


def _local(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(absolute(path) for path in paths if "://" not in path)


def _require_inputs(stages: Sequence[PlannedStage], path: str) -> None:
    """Raise UserError for a stage that reads what is not there, and that none of the stages it needs makes."""
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        before, left = set[str](), list(stage.needs)
        while left:
            if (name := left.pop()) not in before:
                before.add(name)
                left += by_name[name].needs
        made = [output for name in before for output in by_name[name].outputs]
        for needed in stage.inputs:
            if not Path(needed).exists() and not any(Path(needed).is_relative_to(output) for output in made):
                what = f"{needed} is not there, and no stage that this one needs makes it"
                remedy = "correct the path, or name in `needs` the stage that makes it"
                raise UserError(what, f"stage {stage.name} of {path}", remedy)


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"; {visible(close[0])} is one" if close else ""

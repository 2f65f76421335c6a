"""The arguments and options that several commands share, and options that are the fields of a settings model."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import pydantic
import typer
from pydantic.fields import FieldInfo

from cluster.terminal.tables import print_json
from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.printable import visible

F = TypeVar("F", bound=Callable[..., Any])

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="settings that win over the file's")
]
Media = Annotated[str | None, typer.Option("--media", help="a folder or URL that the listed videos lie below")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else on standard output")]
Config = Annotated[str, typer.Argument(help="a recipe (YAML), e.g. one of configs/")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, print the derived quantities, stop")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="the Ray cluster to work on, instead of RAY_ADDRESS'"),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="hand the command to the Ray cluster, where it outlives this terminal")
]


def sent_to_cluster(address: str | None, detach: bool, as_json: bool = False) -> bool:
    """Whether this process' command line was handed to the Ray cluster; else the command itself works on `address`.

    Raises UserError for a cluster that does not take it.
    """
    if address:
        environment.use_ray_cluster(address)
    if not detach:
        return False
    from cluster.submission.ray_jobs import RayJobs

    job = RayJobs().submit(sys.argv[1:])
    if as_json:
        print_json({"job": job})
    else:
        print(visible(f"job {job} is handed to the cluster of {environment.ray_address()}"))
        for command in (f"status {job}", f"logs {job} --follow", f"stop {job}"):
            print(visible(f"  reelscale {command} --address {environment.ray_address()}"))
    return True


def with_options(model: type[pydantic.BaseModel], leaves_out: Sequence[str] = ()) -> Callable[[F], F]:
    """A decorator that gives a Typer command, by its parameter `**options`, an option for each field of a model.

    A tuple's option may be repeated, a dictionary's is `KEY=VALUE`. What is not named on the command line is None.
    """

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True)
        first = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {name: field for name, field in model.model_fields.items() if name not in leaves_out}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
            for name, field in fields.items()
        ]
        signature = own.replace(parameters=[*first, *more])
        command.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect.signature
        command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
        return command

    return decorate


def named(options: dict[str, Any], model: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The options that the command line names, as the model takes them. Raises UserError for a KEY=VALUE that is none.

    One that may be repeated comes as an empty list where it is not named.
    """
    values = {name: value for name, value in options.items() if value not in (None, [])}
    for name, value in values.items():
        if _container(model.model_fields[name].annotation) is dict:
            values[name] = dict(_pair(name, text) for text in value)
    return values


def _pair(name: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"not KEY=VALUE: {text}", _flag(name), f"write {_flag(name)} KEY=VALUE")
    return key, value


def _option(name: str, field: FieldInfo) -> Any:
    """The type and option of a field, as Typer reads them."""
    extra = field.json_schema_extra
    unit = str(extra["unit"]) if isinstance(extra, dict) and "unit" in extra else ""
    measured = f", in {unit}" if unit and unit not in str(field.description) else ""
    default = "" if field.is_required() or field.default in (None, (), {}) else f" [default: {field.default}]"
    required = " [required]" if field.is_required() else ""
    help_text = f"{field.description}{measured}{default}{required}"
    return Annotated[_typer_type(field.annotation) | None, typer.Option(_flag(name), help=help_text)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _container(annotation: Any) -> Any:
    return typing.get_origin(annotation)


def _typer_type(annotation: Any) -> Any:
    """int, float, or str, or a list of strings: what Typer reads; the model's own checks follow."""
    origin = _container(annotation)
    if origin is Annotated:
        return _typer_type(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return _typer_type(next(part for part in typing.get_args(annotation) if part is not types.NoneType))
    if origin in (tuple, dict):
        return list[str]
    return annotation if annotation in (int, float, bool) else str

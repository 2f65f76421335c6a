"""`reelscale settings`: every setting of a command, for people, programs and editors."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import Field

from cluster.commands.launch import launch
from cluster.commands.settings import model_of, reference_page
from cluster.terminal.settings_rows import SettingRow, print_settings, setting_rows
from cluster.terminal.settings_schema import flat_schema
from sharding.base.settings import Inline, Seconds, Settings, settings_tree
from tests.cluster.conftest import Say
from tests.support.commands import refused, succeeded
from tests.support.source_code import ROOT


class Reading(Settings):
    mode: Annotated[Literal["ranges", "parts"], Field(description="how bytes are read")] = "ranges"
    wait: Annotated[Seconds, Field(description="longest wait")] = 60.0


class Training(Settings):
    lr: Annotated[float, Field(gt=0, description="rate")]
    reading: Annotated[Reading, Field(description="of a store")] = Reading(mode="parts")
    others: Annotated[tuple[Reading, ...], Field(description="more of them")] = ()
    copied: Annotated[bool, Field(alias="copy", description="whether to copy")] = False


class Job(Settings):
    train: Annotated[Training, Inline()]
    port: Annotated[int | None, Field(ge=0, le=65535, description="0: a free port")] = None


WAIT = ("number > 0 and ≤ 31,622,400", False, 60.0, "seconds", "longest wait")


def test_rows_are_the_settings_as_users_write_them() -> None:
    assert setting_rows(Job) == [
        SettingRow("lr", "number > 0", True, None, "", "rate"),
        SettingRow("reading.mode", "ranges | parts", False, "parts", "", "how bytes are read"),
        SettingRow("reading.wait", *WAIT),
        SettingRow("others", "list of the settings below", False, [], "", "more of them"),
        SettingRow("others[].mode", "ranges | parts", False, "ranges", "", "how bytes are read"),
        SettingRow("others[].wait", *WAIT),
        SettingRow("copy", "true or false", False, False, "", "whether to copy"),
        SettingRow("port", "integer ≥ 0 and ≤ 65,535 or null", False, None, "", "0: a free port"),
    ]


def test_what_people_see(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_settings([SettingRow("a.b", "number > 0", True, None, "seconds", "long " * 30), *setting_rows(Job)])
    said = capsys.readouterr().out
    assert said.startswith("a.b: number > 0, seconds, required\n    long long")
    assert all(len(line) <= 60 for line in said.splitlines())
    assert "copy: true or false, default false\n    whether to copy\n" in said


def test_the_schema_is_of_the_file_that_users_write() -> None:
    schema = flat_schema(Job, "reelscale job")
    assert schema["title"] == "reelscale job"
    assert [*schema["properties"]] == ["base", "lr", "reading", "others", "copy", "port"]
    assert schema["additionalProperties"] is False


def test_what_is_required_may_be_said_by_a_base_but_of_an_entry_of_a_list() -> None:
    checks = jsonschema.Draft202012Validator(flat_schema(model_of("pretrain"), "reelscale pretrain")).is_valid
    whole = {"data": {"store": "s"}}
    assert checks(whole) and not checks({"lanes": 8})
    assert checks({"base": "a.yaml", "lanes": 8}) and checks({"base": ["a.yaml"], "data": {"clip": {"frames": 8}}})
    assert not checks({"base": 3}) and not checks({"base": "a.yaml", "lanez": 8})
    assert not checks({"base": "a.yaml", "data": {"mix": [{"weight": 2}]}})


@pytest.mark.parametrize(
    "command", ["shard", "retry", "pretrain", "finetune", "evaluate", "bench-loader", "plan", "models"]
)
def test_every_command_shows_its_settings(command: str) -> None:
    rows = setting_rows(model_of(command))
    keys = [row.key for row in rows]
    assert len(rows) > 4 and len({*keys}) == len(keys)
    properties = {*flat_schema(model_of(command), command)["properties"]}
    assert properties == {"base", *(key.partition(".")[0] for key in keys)}


def test_by_the_command_line(say: Say) -> None:
    rows = json.loads(succeeded(say("settings", "pretrain", "--json")).stdout)
    seconds = next(row for row in rows if row["key"] == "watchdog.stall_seconds")
    assert seconds["unit"] == "seconds" and seconds["default"] > 0 and seconds["description"]
    assert json.loads(succeeded(say("settings", "shard", "--json-schema")).stdout)["properties"]["encode"]
    assert "ranks: integer ≥ 1" in succeeded(say("settings", "finetune")).stdout
    refused(say("settings", "nothing"), "no command of this name has settings", "shard, retry, pretrain")
    refused(say("settings"), "no command is named", "shard, retry, pretrain")


def test_a_recipe_is_shown_as_a_whole(say: Say, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("lanes: 2\nschedule: {lr: 0.5, epochs: 3}\n")
    (tmp_path / "mine.yaml").write_text("# Mine.\nbase: policy.yaml\ndata: {store: s}\nschedule: {epochs: 4}\n")
    text = succeeded(say("settings", "pretrain", "mine.yaml", "lanes=4")).stdout
    assert text.startswith("# Mine.\n")
    (tmp_path / "whole.yaml").write_text(text)
    whole = {"lanes": 4, "schedule": {"lr": 0.5, "epochs": 4}, "data": {"store": "s"}}
    assert settings_tree("whole.yaml") == whole
    assert json.loads(succeeded(say("settings", "pretrain", "mine.yaml", "lanes=4", "--json")).stdout) == whole
    refused(say("settings", "pretrain", "mine.yaml", "lanez=4"), "did you mean lanes", "mine.yaml (base policy.yaml)")
    refused(say("settings", "shard", "mine.yaml"), "lanes: there is no such setting")


def test_the_page_of_all_settings_is_what_the_code_says(say: Say) -> None:
    page = succeeded(say("settings", "--reference")).stdout
    assert page == (ROOT / "configs" / "SETTINGS.md").read_text("utf-8"), (
        "write it anew: reelscale settings --reference > configs/SETTINGS.md"
    )
    assert all(f"## reelscale {command}" in page for command in ("shard", "shards retry", "pretrain, finetune", "run"))


def test_every_option_of_launch_is_on_that_page() -> None:
    page = reference_page()
    for command in launch.registered_commands:
        assert command.callback is not None
        (table,) = (
            part for part in page.split("\n## ") if part.startswith(f"reelscale launch {command.callback.__name__}\n")
        )
        flags = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `--")}
        own = {"config", "overrides", "submit", "command", "python", "hosts_file", "hosts", "gpus_per_node"}
        options = {"--" + name.replace("_", "-") for name in inspect.signature(command.callback).parameters}
        assert flags >= options - {"--" + name.replace("_", "-") for name in own} and len(flags) > 3

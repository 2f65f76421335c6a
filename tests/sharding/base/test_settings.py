"""Settings: every mistake is told with its field's path, what was found, and what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pydantic
import pytest
from pydantic import Field

from sharding.base.errors import UserError
from sharding.base.settings import (
    Inline,
    Settings,
    differences,
    digest,
    load_settings,
    settings_files,
    settings_text,
    settings_tree,
)


class Optimizer(Settings):
    learning_rate: float = 0.1
    momentum: float = 0.9


class Run(Settings):
    seed: int = 0
    name: str = "a"
    optimizer: Optimizer = Optimizer()

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Run:
        if self.seed == 13:
            raise ValueError("seed 13 does not go with anything")
        return self


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(Run, str(path) if path else None, list(overrides))
    assert caught.value.where and caught.value.remedy
    return str(caught.value)


def test_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\noptimizer:\n  learning_rate: 1e-3\n")
    run = load_settings(Run, str(file), ["optimizer.momentum=0.5", "name=b=c"])
    assert run == Run(seed=3, name="b=c", optimizer=Optimizer(learning_rate=0.001, momentum=0.5))
    assert load_settings(Run, None, []) == Run()
    assert digest(run) == digest(run.model_dump()) != digest(Run())


@pytest.mark.parametrize(
    ("override", "output"),
    [
        ("sede=1", "sede: there is no such setting; did you mean seed?"),
        ("optimizer.learning_rat=1", "did you mean learning_rate?"),
        ("optimizer.zzz=1", "known here: learning_rate, momentum"),
        ("optimizer.momentum=fast", "optimizer.momentum: found 'fast' (str)"),
        ("optimizer=3", "optimizer: found 3 (int)"),
        ("seed=13", "seed 13 does not go with anything"),
        ("seed", "not a setting: 'seed'"),
        ("=3", "not a setting"),
        ("seed=[1", "not valid YAML"),
        ("optimizer={momentum: 0.1, momentum: 0.2}", "the key 'momentum' is there twice"),
        ("name=2024-13-45", "not valid YAML: a value cannot be read"),
    ],
)
def test_mistakes_in_overrides(override: str, output: str) -> None:
    assert output in refusal(None, override)


def test_override_below_a_value(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optimizer: 3\n")
    assert "optimizer is 3" in refusal(file, "optimizer.momentum=1")


def test_mistakes_in_files(tmp_path: Path) -> None:
    assert "no such settings file" in refusal(tmp_path / "none.yaml")
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\nname: [a\n")
    assert "line 3" in refusal(file)
    file.write_text("- seed\n")
    assert "found a list" in refusal(file)
    file.write_text("seed: x\nsede: 1\n")
    both = refusal(file)
    assert "2 settings do not fit" in both and "seed: found 'x'" in both and "sede: there is no such" in both


@pytest.mark.parametrize(
    ("text", "expected_words"),
    [
        ("seed: 1\nname: a\nseed: 2\n", ("the key 'seed' is there twice, first on line 1", "line 3, column 1")),
        ("optimizer:\n  momentum: 1\n  momentum: 1\n", ("the key 'momentum' is there twice", "line 3, column 3")),
        ("optimizer: {momentum: 1, 'momentum': 2}\n", ("the key 'momentum' is there twice", "line 1")),
        ("optimizer: {}\nseed: 1\noptimizer: {}\n", ("the key 'optimizer' is there twice", "line 3")),
        ("name: [{a: 1, a: 2}]\n", ("the key 'a' is there twice", "line 1")),
        ("name: 2024-13-45\n", ("a value cannot be read", "run.yaml")),
        ("name: " + "[" * 5000, ("YAML", "run.yaml")),
        ("{seed: 1}: 2\n", ("YAML", "run.yaml")),
    ],
)
def test_files_that_say_two_things_or_none(tmp_path: Path, text: str, expected_words: tuple[str, ...]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    said = refusal(file)
    assert all(part in said for part in expected_words), said


def test_what_a_merge_brings_may_be_given_anew(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optimizer:\n  <<: {momentum: 0.1, learning_rate: 0.2}\n  momentum: 0.3\n")
    assert load_settings(Run, str(file)).optimizer == Optimizer(momentum=0.3, learning_rate=0.2)


def test_user_error_survives_a_process_boundary() -> None:
    error = UserError("what", "where", "remedy")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "what\n  where: where\n  remedy: remedy"


def test_differences_name_the_leaf() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == [("a.c", 2, 3)]
    assert differences({"classes": ["caf\u00e9"]}, {"classes": ["cafe\u0301"]}) == []
    assert differences({"a": 1.0, "b": "1"}, {"a": 1, "b": 1}) == [("b", "1", 1)]


def test_importing_errors_and_settings_stays_light() -> None:
    heavy = "[name for name in ('torch', 'av', 'ray', 'pyarrow') if name in sys.modules]"
    code = f"import sys, sharding.base.errors, sharding.base.settings; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


class Inner(Settings):
    rate: float = 0.1
    copied: Annotated[bool, Field(alias="copy")] = False


class Other(Settings):
    workers: Annotated[int, Field(ge=0)] = 1


class Job(Settings):
    inner: Annotated[Inner, Inline()]
    other: Annotated[Other, Inline()]
    below: Other = Other()


def test_an_inlined_fields_settings_are_written_beside_the_others(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("rate: 0.5\nbelow: {workers: 3}\n")
    job = load_settings(Job, str(file), ["copy=true", "workers=2"])
    assert (job.inner.rate, job.inner.copied, job.other.workers, job.below.workers) == (0.5, True, 2, 3)
    assert Job.model_validate(job.model_dump(by_alias=True)) == job


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("worker=2", "worker: there is no such setting; did you mean workers"),
        ("nothing=2", "nothing: there is no such setting; known here: below, copy, rate, workers"),
        ("inner={rate: 1}", "inner: there is no such setting"),
        ("other.workers=2", "other: there is no such setting"),
        ("workers=-1", r"workers: found -1 \(int\)"),
        ("below.workers=-1", r"below\.workers: found -1 \(int\)"),
    ],
)
def test_an_inlined_fields_settings_are_named_as_users_write_them(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_settings(Job, None, [override])


def test_a_tree_is_read_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("a: {b: 1}\n")
    assert settings_tree(str(file), ["a.c=[2]", "d=x"]) == {"a": {"b": 1, "c": [2]}, "d": "x"}
    assert settings_tree(None) == {}


def written(folder: Path, **texts: str) -> Path:
    """The last of these YAML files, made in a folder; `__` in a name is a slash."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def test_bases_are_merged_deeply_later_ones_and_the_file_itself_win(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        bases__policy="seed: 1\nname: policy\noptimizer: {learning_rate: 0.5, momentum: 0.5}\n",
        bases__small="seed: 2\noptimizer: {learning_rate: 0.25}\n",
        rows__one="base: [../bases/policy.yaml, ../bases/small.yaml]\noptimizer: {momentum: 0.1}\n",
        mine="# Mine.\nbase: rows/one.yaml\nname: mine\n",
    )
    assert load_settings(Run, str(recipe)) == Run(
        seed=2, name="mine", optimizer=Optimizer(learning_rate=0.25, momentum=0.1)
    )
    assert load_settings(Run, str(recipe), ["optimizer.momentum=0.7"]).optimizer == Optimizer(
        learning_rate=0.25, momentum=0.7
    )
    names = [Path(path).relative_to(tmp_path).as_posix() for path in settings_files(str(recipe))]
    assert names == ["mine.yaml", "rows/one.yaml", "bases/policy.yaml", "bases/small.yaml"]
    whole = tmp_path / "whole.yaml"
    whole.write_text(settings_text(str(recipe), ["seed=9"]))
    assert whole.read_text().startswith("# Mine.\nseed: 9\n") and "base" not in whole.read_text()
    assert settings_tree(str(whole)) == settings_tree(str(recipe), ["seed=9"])


def test_a_base_may_be_named_by_many_and_no_list_is_merged(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        root="list: [1, 2]\nempty: {a: 1}\n",
        left="base: root.yaml\n",
        right="base: root.yaml\nlist: [3]\nempty: null\n",
        both="base: [left.yaml, right.yaml]\n",
    )
    assert settings_tree(str(recipe)) == {"list": [3], "empty": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: gone.yaml\n", ("no such settings file", "gone.yaml", "run.yaml names it as a base")),
        ("base: run.yaml\n", ("go on from one another", "run.yaml → ")),
        ("base: other.yaml\n", ("go on from one another", "other.yaml → ", "run.yaml")),
        ("base: 3\n", ("base: found 3 (int)", "run.yaml", "base: FILE.yaml")),
        ("base: [other.yaml, 3]\n", ("base: found ['other.yaml', 3] (list)", "run.yaml")),
        ("base: broken.yaml\n", ("not valid YAML", "broken.yaml, line")),
        ("base: wrong.yaml\n", ("sede: there is no such setting", "run.yaml (base ", "wrong.yaml")),
        ("optimizer: {base: other.yaml}\n", ("optimizer.base: there is no such setting",)),
    ],
)
def test_bases_that_cannot_be_had(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = written(tmp_path, other="base: run.yaml\n", broken="seed: [\n", wrong="sede: 1\n", run=text)
    said = refusal(file)
    assert all(word in said for word in words), said


def test_a_base_is_named_by_files_alone(tmp_path: Path) -> None:
    assert "base is no setting: it names files" in refusal(written(tmp_path, run="seed: 1\n"), "base=other.yaml")

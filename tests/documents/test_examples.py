"""The documents' examples: each command line is one, and those that start no heavy work really run."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from cluster.cli import app
from cluster.commands.settings import model_of
from cluster.terminal.settings_rows import setting_rows
from sharding.base.settings import settings_text, settings_tree, validate
from tests.cluster.conftest import Say
from tests.documents.markdown import (
    DOCUMENTS,
    Block,
    Example,
    block_examples,
    blocks,
    command_words,
    span_examples,
)
from tests.support.commands import succeeded
from tests.support.source_code import ROOT, relative

CONFIGS = ROOT / "configs"
STAND_INS = {  # for a recipe of the reader's own
    "pretrain": "r2plus1d/table4/sports1m-r2plus1d-34-32f-pretrain.yaml",
    "finetune": "r2plus1d/table6/ucf101-r2plus1d-34-32f-from-sports1m-finetune.yaml",
    "evaluate": "demo-evaluate.yaml",
    "shard": "demo-shard.yaml",
    "plan": "r2plus1d/table4/sports1m-r2plus1d-34-32f-pretrain.yaml",
    "launch": "r2plus1d/table4/sports1m-r2plus1d-34-32f-pretrain.yaml",
}
PLACEHOLDERS = {"COMMAND": "pretrain", "N": "2", "M": "8"}
SETTINGS_OF = {
    "shards retry": "retry",
    "launch slurm": "pretrain",
    "launch kuberay": "pretrain",
    "launch hostfile": "pretrain",
}
WITH_SETTINGS = ("shard", "pretrain", "finetune", "evaluate", "bench-loader", *SETTINGS_OF)


def click_command(words: tuple[str, ...]) -> tuple[str, Any, list[str]]:
    """A command line's command, by name and as Typer's parser has it, and its further words."""
    command: Any = typer.main.get_command(app)
    names, rest = [], list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {' '.join([*names, rest[0]])}"
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
    return " ".join(names), command, rest


def help_examples() -> list[Example]:
    """The command lines in the help of every command."""

    def walk(command: Any, name: str) -> list[Example]:
        below = getattr(command, "commands", {})
        after = inspect.cleandoc(command.help or "").partition("Examples:")[2]
        lines = [line.strip() for line in after.splitlines()]
        own = [
            Example(f"{name} --help: {line}", command_words(line)) for line in lines if line.startswith("reelscale ")
        ]
        return own + [example for key, each in below.items() for example in walk(each, f"{name} {key}")]

    return walk(typer.main.get_command(app), "reelscale")


def recipe_examples() -> list[Example]:
    """The command lines in the heads of recipes."""
    return [
        Example(f"{relative(path)}: {line}", command_words(line.partition("Command: ")[2].partition("   ")[0]))
        for path in sorted(CONFIGS.rglob("*.yaml"))
        for line in path.read_text("utf-8").splitlines()
        if "# Command: " in line
    ]


EXAMPLES = [
    *(each for document in DOCUMENTS for each in block_examples(document)),
    *help_examples(),
    *recipe_examples(),
]
SPANS = [each for document in DOCUMENTS for each in span_examples(document)]
RUN = [  # they end within a second or two, and write nothing but what they print
    each
    for each in {example.words: example for example in EXAMPLES if "$" not in " ".join(example.words)}.values()
    if "--dry-run" in each.words
    or (each.words[0] in ("settings", "plan", "launch") and "--submit" not in each.words)
    or each.words[:2] == ("models", "--name")
]


def recipe(name: str, command: str) -> str:
    """The file that stands for a recipe named in an example."""
    return str(ROOT / name if (ROOT / name).exists() else CONFIGS / STAND_INS[command.split()[0]])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.where)
def test_a_command_line_is_one(example: Example) -> None:
    """Its command, arguments and options are read by the command's own parser, its settings by its own model."""
    name, command, rest = click_command(example.words)
    assert not hasattr(command, "commands"), "a command of the group is missing"
    parameters = command.make_context(name, [PLACEHOLDERS.get(word, word) for word in rest]).params
    if name not in WITH_SETTINGS:
        return
    config, overrides = parameters.get("config"), [*(parameters["overrides"] or [])]
    if name == "bench-loader":
        overrides.append(f"data.store={parameters['store']}")
    tree = settings_tree(recipe(config, name) if config else None, overrides)
    if config and not (ROOT / config).exists() and not any(word.startswith("ranks=") for word in overrides):
        tree.pop("ranks", None)  # a reader's own recipe may leave it to nodes and gpus_per_node
    validate(model_of(SETTINGS_OF.get(name, name)), tree, example.where)


@pytest.mark.parametrize("example", SPANS, ids=lambda example: example.where)
def test_a_command_named_in_a_sentence_exists(example: Example) -> None:
    words = tuple(PLACEHOLDERS.get(word, word) for word in example.words)
    if words[0] == PLACEHOLDERS["COMMAND"]:
        words = words[:2]
    _, command, rest = click_command(words)
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= options


def test_examples_are_really_found() -> None:
    assert len(EXAMPLES) > 60 and len(SPANS) > 20 and len(RUN) > 10
    with pytest.raises(AssertionError, match="no command shards mend"):
        click_command(("shards", "mend"))
    assert command_words("RAY_ADDRESS=a:1 reelscale run 'a b' # c") == ("run", "a b")
    assert command_words("srun --ntasks 2 reelscale pretrain a") == ("pretrain", "a")
    assert command_words("until reelscale run a; do sleep 1; done") == ("run", "a")
    assert command_words("# reelscale run a") == command_words("the reelscaled one") == ()


def test_settings_named_in_tables_exist() -> None:
    commands = ("shard", "retry", "pretrain", "evaluate", "splits", "sweep", "run", "bench-loader", "plan", "models")
    rows = [row.key for command in commands for row in setting_rows(model_of(command))]
    keys = {key[:end] for key in rows for end in (*(m.start() for m in re.finditer(r"\.", key)), len(key))}
    named: list[tuple[str, str]] = []
    for document in DOCUMENTS:
        for table in re.findall(r"^\| setting \|.*\n\|[-|]+\n((?:\|.*\n)+)", document.read_text("utf-8"), re.MULTILINE):
            for line in table.splitlines():
                above = ""
                for span in re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", line)[1]):
                    key = span.partition("=")[0]
                    if key.startswith("--"):
                        continue
                    key = above + key if key.startswith(".") else key
                    above = key.rpartition(".")[0]
                    named.append((relative(document), key))
    assert len(named) > 300
    assert [each for each in named if each[1] not in keys] == []


@pytest.fixture()
def readers_folder(tmp_path: Path, store: Path) -> Path:
    """The folder that a reader of the documents works in: recipes, a store, and the pipeline of cluster/README.md."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    (tmp_path / "store").symlink_to(store)
    for name in ("motion", "motion2"):
        (tmp_path / "demo" / "corpora" / name).mkdir(parents=True)
    (tmp_path / "demo" / "store").mkdir()
    (tmp_path / "demo" / "store" / "motion2").symlink_to(store)  # that of the recipes which stand for ucf's and hmdb's
    (tmp_path / "corpus").mkdir()
    (pipeline,) = (block.text for block in blocks(ROOT / "cluster" / "README.md") if "stages:" in block.text)
    (tmp_path / "mine.yaml").write_text(pipeline)
    for name, original in {
        "shard": "demo-shard",
        "pretrain": "demo-pretrain",
        "ucf": "demo-finetune",
        "hmdb": "demo-finetune",
    }.items():
        shutil.copy(CONFIGS / f"{original}.yaml", tmp_path / f"{name}.yaml")
    for name in ("recipe.yaml", "my.yaml"):
        (tmp_path / name).write_text(settings_text(str(CONFIGS / STAND_INS["pretrain"])))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("example", RUN, ids=lambda example: example.where)
def test_what_only_prints_prints(example: Example, say: Say, readers_folder: Path) -> None:
    words = [re.sub(r"^data\.store=s3:.*", "data.store=./store", word) for word in example.words]
    if words[0] == "plan":
        words = [word for word in words if not word.endswith("*.json") and word != "--measured"]
    if words[0] == "launch" and not {"--claim", "--secrets"} & {*words}:
        words.append("data.store=/data/store")
    made = succeeded(say(*words))
    assert made.stdout.strip()


@pytest.mark.slow
def test_the_pipeline_of_the_documents_is_one(say: Say, readers_folder: Path) -> None:
    (example,) = {
        each.words for each in EXAMPLES if each.words[:2] == ("run", "mine.yaml") and "--detach" not in each.words
    }
    made = succeeded(say(*example, "--dry-run"))
    stages = [line.split()[0] for line in made.stdout.splitlines()[1:]]
    assert stages == ["shard", "pretrain", "ucf", "hmdb", "report"]


@pytest.mark.slow
def test_every_command_has_help_with_examples(say: Say) -> None:
    without = []

    def walk(command: Any, words: list[str]) -> None:
        for name, each in getattr(command, "commands", {}).items():
            walk(each, [*words, name])
        text = succeeded(say(*words, "--help")).stdout
        if words and not hasattr(command, "commands") and f"reelscale {' '.join(words)}" not in text:
            without.append(words)

    walk(typer.main.get_command(app), [])
    assert without == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_python_and_yaml_blocks_are_well_formed(document: Path) -> None:
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, f"{block.document}, line {block.line}", "exec")
        elif block.language == "yaml":
            assert yaml.safe_load(block.text) or all(line.startswith("#") for line in block.text.splitlines())


def python_block(text: str) -> Block:
    """The Python block of pretrain/README.md that has this text in it."""
    (block,) = (
        block for block in blocks(ROOT / "pretrain" / "README.md") if block.language == "python" and text in block.text
    )
    return block


@pytest.mark.slow
def test_the_three_lines_that_predict_run(
    begun: Path, pieces: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are written, in a folder with such a run and such videos."""
    block = python_block("predict(")
    assert sum(map(bool, block.text.splitlines())) == 3
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(begun)
    (tmp_path / "videos").mkdir()
    for piece in pieces[:2]:
        shutil.copy(piece, tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, "example", "exec"), {})  # the repository's own text
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [f"videos/{piece.name}" for piece in pieces[:2]]
    assert all("calm" in line and "lively" in line for line in printed)


@pytest.mark.slow
def test_the_loop_of_your_own_runs(store: Path) -> None:
    """As it is written, but for the store's address and one step for all."""
    block = python_block("Loader(")
    code = block.text.replace("s3://bucket/sports1m", str(store))
    assert code != block.text
    tree = ast.parse(code)
    (loop,) = (node for node in ast.walk(tree) if isinstance(node, ast.For))
    loop.body.append(ast.fix_missing_locations(ast.Break()))
    names: dict[str, Any] = {"rank": 1, "device": torch.device("cpu"), "position": None}
    setup = ast.parse(code.partition("with Loader")[0])
    exec(compile(setup, "setup", "exec"), names)  # the repository's own text
    with names["Loader"](
        names["sources"], names["order"], names["data"].clip, names["data"].loader, lanes=range(1)
    ) as loader:
        names["position"] = loader.state_dict()
    exec(compile(ast.fix_missing_locations(tree), "example", "exec"), names)
    assert names["video"].shape == (32, 3, 16, 112, 112) and names["video"].dtype == torch.float32
    assert names["video"].isfinite().all()

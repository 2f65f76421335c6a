"""A snapshot as lines of a terminal: what is worst first, in as many columns and lines as there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.status.fields import Field, extremes, fields
from cluster.status.outcomes import age
from cluster.status.states import OUTCOMES, Outcome, Problem, Snapshot, WorkState
from sharding.base.printable import visible

_STYLES: dict[Outcome, str] = {
    "silent": "bold red",
    "stalled": "bold red",
    "troubled": "bold yellow",
    "starting": "cyan",
    "running": "green",
    "stopped": "blue",
    "finished": "blue",
}
_SEVERITIES = {"critical": "bold red", "warning": "yellow", "note": "default"}
_INDENT = 2
_MOST_PROBLEMS, _MOST_ROWS = 12, 12
_LEAST_LINES = 3  # of runs, and of problems, however many of the others there are


class Page:
    """Lays a snapshot out for a terminal of so many columns, and lines where they are bounded."""

    def __init__(self, width: int, height: int | None, encoding: str) -> None:
        """`encoding`: of the terminal; characters that it lacks are written as codes."""
        self._width, self._height, self._encoding = max(20, width), height, encoding

    def lay_out(self, snapshot: Snapshot, hint: str = "") -> RenderableType:
        """The whole page. `hint`: what its head says besides."""
        head, tables = self._head(snapshot, hint), self._tables(snapshot)
        blocks = [self._block(run) for run in snapshot.runs]
        problems = newest_first(problem for run in snapshot.runs for problem in run.problems)
        if self._height is None:
            return Group(*head, *_flat(blocks), *self._problems(problems[:_MOST_PROBLEMS]), *tables)
        room = self._height - 1 - len(head) - sum(table.row_count + 1 for table in tables)
        lines: list[Text] = []
        for count in range(min(len(problems), _MOST_PROBLEMS), 0, -1):
            lines = self._problems(problems[:count])
            if len(lines) <= room // 2:
                break
        lines = lines[: max(_LEAST_LINES, room // 2)]
        return Group(*head, *_flat(fitted(blocks, max(_LEAST_LINES, room - len(lines)))), *lines, *tables)

    def _head(self, snapshot: Snapshot, hint: str) -> list[Text]:
        outcomes = Counter(run.outcome for run in snapshot.runs)
        words = [(f"{outcomes[each]} {each}", _STYLES[each]) for each in OUTCOMES if outcomes[each]]
        processes = [each for run in snapshot.runs for each in run.processes]
        silent = sum(each.health == "does not answer" for each in processes)
        parts: list[Text] = [Text(snapshot.at[11:19], "bold"), *(Text(*word) for word in words)]
        if processes:
            parts.append(Text(f"{len(processes) - silent} of {len(processes)} processes answer"))
        parts += [Text(note, "yellow") for note in map(self._shown, snapshot.notes)]
        return packed([*parts, Text(hint, "dim")] if hint else parts, self._width, 0)

    def _block(self, run: WorkState) -> list[Text]:
        """A run's lines, of which the first says how it is."""
        style = _STYLES[run.outcome]
        name, kind = self._shown(run.run), self._shown(run.kind)
        first = Text.assemble((f"{run.outcome:<8}", style), "  ", (name, "bold"), f" {kind}")
        reason = Text(self._shown(run.reason), style if run.outcome in ("silent", "stalled", "troubled") else "dim")
        if run.reason:
            first.append(" - ").append_text(reason)
        lines = [*wrapped(first, self._width, 0)]
        for group in (fields(run), extremes(run)):
            lines += packed([self._field(each) for each in group], self._width, _INDENT)
        return lines

    def _field(self, field: Field) -> Text:
        label, value = field
        return Text.assemble((f"{label} ", "dim") if label else "", self._shown(value))

    def _problems(self, problems: Sequence[Problem]) -> list[Text]:
        """What is wrong, and what to do: the same remedy once, below the first that it is for."""
        if not problems:
            return []
        lines, remedies = [Text("last problems", "bold")], set[str]()
        for problem in problems:
            when = "now" if problem.age_seconds is None else f"{age(problem.age_seconds)} ago"
            times = f" ({problem.times} times)" if problem.times > 1 else ""
            text = Text.assemble(
                (f"{when} ", "bold"), self._shown(problem.run), ": ",
                (self._shown(problem.what) + times, _SEVERITIES[problem.severity]),
            )  # fmt: skip
            lines += wrapped(text, self._width, _INDENT)
            if problem.to_do not in remedies:
                lines += wrapped(Text(f"-> {self._shown(problem.to_do)}", "dim"), self._width, 2 * _INDENT)
            remedies.add(problem.to_do)
        return lines

    def _tables(self, snapshot: Snapshot) -> list[Table]:
        tables = []
        if snapshot.jobs:
            rows = [
                (each.job, each.state, "" if each.exit_code is None else str(each.exit_code),
                 each.ended or each.began or "", each.command)
                for each in snapshot.jobs[-_MOST_ROWS:]
            ]  # fmt: skip
            tables.append(self._table(("job", "state", "exit", "since", "command"), rows))
        if snapshot.nodes:
            rows = [
                (each.address, each.state, _count(each.cpus), _count(each.gpus), "head" if each.is_head else "")
                for each in snapshot.nodes[:_MOST_ROWS]
            ]
            tables.append(self._table(("node", "state", "CPUs", "GPUs", ""), rows))
        return tables

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", width=None)
        for number, column in enumerate(columns):
            table.add_column(column, no_wrap=True, overflow="crop" if number else "fold")
        for row in rows:
            table.add_row(*(Text(self._shown(cell)) for cell in row))
        return table

    def _shown(self, text: str) -> str:
        return visible(text).encode(self._encoding, "backslashreplace").decode(self._encoding)


def newest_first(problems: Iterable[Problem]) -> list[Problem]:
    """Problems with those of now at the head, of them the gravest, then by age."""
    gravity = list(_SEVERITIES)
    return sorted(
        problems,
        key=lambda each: (
            -1.0 if each.age_seconds is None else each.age_seconds,
            gravity.index(each.severity),
        ),
    )


def packed(parts: Sequence[Text], width: int, indent: int) -> list[Text]:
    """Parts side by side, with two spaces between, in as many lines as they need."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 2 + part.cell_len <= width:
            lines[-1].append("  ").append_text(part)
        else:
            lines += wrapped(part, width, indent)
    return lines


def wrapped(text: Text, width: int, indent: int) -> list[Text]:
    """A text as lines of a width, the second and later ones indented further."""
    console = Console(width=width, file=None, force_terminal=False)
    lines = text.wrap(console, max(8, width - indent - _INDENT), overflow="fold")
    return [Text(" " * (indent + (_INDENT if number else 0))).append_text(line) for number, line in enumerate(lines)]


def fitted(blocks: Sequence[list[Text]], lines: int) -> list[list[Text]]:
    """Blocks in so many lines: the last lose all but their first line, then are only counted."""
    kept = [list(block) for block in blocks]
    for block in reversed(kept):
        if sum(map(len, kept)) <= lines:
            return kept
        del block[1:]
    if len(kept) <= lines:
        return kept
    return [*kept[: lines - 1], [Text(f"... and {len(kept) - lines + 1} more", "dim")]]


def _flat(blocks: Iterable[list[Text]]) -> list[Text]:
    return [line for block in blocks for line in block]


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:g}"

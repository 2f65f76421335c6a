"""The table of configs/README.md: every published row that a recipe reproduces, with its figures.

`python -m tests.configs.published` prints it.
"""

from __future__ import annotations

from pretrain.papers.rows import ROWS


def table_of_rows() -> str:
    """The table of configs/README.md: a line a row, with links to its recipe and to that by which it is scored."""
    lines = ["| table | row | published | recipe | scored by |", "|---|---|---|---|---|"]
    for row in ROWS:
        scored = f"[{row.scored.rpartition('/')[2]}]({row.scored}.yaml)" if row.scored else "itself"
        recipe = f"[{row.recipe.rpartition('/')[2]}]({row.recipe}.yaml)"
        lines.append(f"| {row.table} | {row.row} | {row.text or 'no figure'} | {recipe} | {scored} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table_of_rows(), end="")

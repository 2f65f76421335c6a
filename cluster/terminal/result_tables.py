"""Tables of what many runs came to: over splits, and over the trials of a sweep."""

from typing import Any

from sharding.base.printable import visible

_NAMES = {"video1": "video@1", "video5": "video@5", "clip1": "clip@1"}


def print_splits(result: dict[str, Any]) -> None:
    """Print each split's figures, their mean and spread, and the published one."""
    print(
        "".join(f"{name:>20}" if number else f"{name:<12}" for number, name in enumerate(["split", *_NAMES.values()]))
    )
    for split in result["splits"]:
        figures = split["figures"]
        cells = [f"{100 * figures[name]:.1f} %" for name in _NAMES] if figures else [split["outcome"]]
        print(visible(f"{split['split']:<12}" + "".join(f"{cell:>20}" for cell in cells)))
    if result["mean"]:
        spread = result["spread"]
        cells = [
            f"{100 * result['mean'][name]:.1f}" + (f" ± {100 * spread[name]:.1f}" if spread else "") + " %"
            for name in _NAMES
        ]
        of = "mean" if result["done"] == result["of"] else f"mean of {result['done']}"
        print(f"{of:<12}" + "".join(f"{cell:>20}" for cell in cells))
    if result["published"]:
        cell = f"{100 * result['published']['video1']:.1f} %"
        print(f"{'published':<12}{cell:>20}")


def print_sweep(result: dict[str, Any]) -> None:
    """Print a sweep's trials, the best first."""
    keys = list(result["trials"][0]["settings"]) if result["trials"] else []
    metric = result["metric"]
    heads = ["trial", "outcome", "step", _NAMES[metric], *keys]
    rows = [
        [
            str(row["number"]),
            row["outcome"],
            "–" if row["step"] is None else str(row["step"]),
            "–" if row[metric] is None else f"{100 * row[metric]:.1f} %",
            *(str(row["settings"][key]) for key in keys),
        ]
        for row in result["trials"]
    ]
    widths = [max(len(line[column]) for line in [heads, *rows]) for column in range(len(heads))]
    for line in [heads, *rows]:
        print(visible("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))))
    for row in result["trials"]:
        if row["error"]:
            print(visible(f"trial {row['number']} failed: {row['error']}"))

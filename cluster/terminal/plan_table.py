"""A plan for people: every figure with the figures that it came from, and every assumption with its source."""

from typing import Any

from sharding.base.printable import visible

_COLUMNS = ("seconds", 86400), ("cost", 1)


def print_plan(tree: dict[str, Any]) -> None:
    """Print the plan that `cluster.jobs.planning.run_plan` gives: notes, what went in, what comes out, what binds."""
    print(visible(tree["title"]))
    for note in tree["notes"]:
        print(f"  note: {visible(note)}")
    print("what it goes by")
    for figure in tree["inputs"]:
        _print_figure(figure)
    for section, figures in tree["figures"].items():
        print(section)
        for figure in figures:
            _print_figure(figure)
    print("limits: the least seconds of a step by each")
    longest = max(tree["limits"].values())
    for name, seconds in sorted(tree["limits"].items(), key=lambda item: -item[1]):
        if seconds:
            print(f"  {name:<30} {_shown(seconds):>13} s {100 * seconds / longest:>5.1f} %")
    print("twice of")
    for row in tree["purchases"]:
        days, cost = ("–" if row[name] is None else _shown(row[name] / unit) for name, unit in _COLUMNS)
        print(f"  {row['what']:<30} {days:>13} days {-100 * row['saved'] + 0.0:>+6.1f} % of the time {cost:>13} USD")
    print(f"what binds: {visible(tree['binds'])}\nbuy first: {visible(tree['buy_first'])}")


def _print_figure(figure: dict[str, Any]) -> None:
    value = figure["value"]
    shown = "–" if value is None else visible(value) if isinstance(value, str) else _shown(value)
    where = f"= {figure['arithmetic']}" if figure["arithmetic"] else f"[{figure['source']}]" if figure["source"] else ""
    print(f"  {figure['name']:<30} {shown:>13} {figure['unit']:<14} {visible(where)}".rstrip())


def _shown(value: float) -> str:
    """A number with four digits that count, thousands with commas."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"

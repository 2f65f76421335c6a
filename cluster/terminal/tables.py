"""What commands print: tables for people, JSON for programs."""

import json
import sys
from typing import Any

from sharding.base.printable import visible


def readable(quantities: dict[str, Any]) -> dict[str, Any]:
    """A run's derived quantities as rows for `print_table`: bytes as MiB, large numbers with commas."""
    shown = {}
    for name, value in quantities.items():
        if name.endswith("_bytes"):
            shown[name.removesuffix("_bytes")] = f"about {value / 2**20:,.0f} MiB"
        elif isinstance(value, float):
            shown[name] = f"{value:,.4g}"
        else:
            shown[name] = f"{value:,}" if isinstance(value, int) else value
    return {name.replace("_", " "): value for name, value in shown.items()}


def print_models(rows: list[dict[str, Any]]) -> None:
    """Print what each network costs, or why it is refused, one a line."""
    columns = ("name", "depth", "frames", "size", "classes", "parameters", "conv+fc", "GMACs", "activations")
    print("  ".join(f"{column:>11}" for column in columns))
    for row in rows:
        if "refused" in row:
            print(f"{visible(row['name']):>11}  {visible(row['refused'])}")
            continue
        shown = [row["name"], row["depth"] or "–", row["frames"], row["size"], row["classes"]]
        shown += [f"{row[name]:,}" for name in ("parameters", "conv_fc_parameters")]
        shown += [f"{row['gmacs']:.2f}", f"{row['activations']:,}"]
        print("  ".join(f"{value!s:>11}" for value in shown))


def print_store(store: dict[str, Any]) -> None:
    """Print a store's summary (sharding.inspect.summary), with at most 50 failures one by one."""
    from sharding.inspect.summary import concealed_words, length_words

    rows: dict[str, Any] = {"samples": f"{store['samples']:,}", "classes": len(store["classes"])}
    for split, counts in sorted(store["splits"].items()):
        size = f"{counts['bytes'] / 1e6:,.1f} MB"
        videos = f"of {counts['videos']:,} videos, {counts['seconds'] / 3600:,.2f} h"
        rows[split] = f"{counts['samples']:,} samples {videos}, in {counts['shards']:,} shards, {size}"
    left = store["jobs"]["planned"] - store["jobs"]["done"]
    if left:
        rows["still to be made"] = f"{left:,} of {store['jobs']['planned']:,} shards"
    concealed = concealed_words(store["concealed"], store["frames"])
    if concealed:
        rows["concealed damage"] = concealed
    for name in ("failures", "left_out"):
        if store[name]:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in store[name].items())
            rows[name.replace("_", " ")] = f"{sum(store[name].values()):,}: {kinds}"
    rows |= store.get("files", {})
    print_table(store["store"], rows)
    lengths = {length_words(bucket): bucket["samples"] for bucket in store["lengths"]}
    print(_bars("lengths", lengths), end="")
    for split, counts in store["label_histogram"].items():
        named = {store["classes"][int(label)]: count for label, count in counts.items()}
        print(_bars(f"classes of {split}", named), end="")
    for failure in store["failure_examples"][:50]:
        print(f"  {visible(failure['uri'])}: {visible(failure['reason'])}")
    if len(store["failure_examples"]) > 50:
        print(f"  … and more: reelscale shards inspect {visible(store['store'])} --json")


def print_verification(report: dict[str, Any]) -> None:
    """Print what `shards verify` read, every damage and every orphan."""
    rows = {name: f"{report[name]:,}" for name in ("shards", "samples", "decoded", "bytes")}
    print_table(report["store"], rows | {"damaged": len(report["damages"]), "orphans": len(report["orphans"])})
    for damage in report["damages"]:
        print(f"  {visible(damage['where'])}: {visible(damage['what'])}")
    for path in report["orphans"]:
        print(f"  {visible(path)}: no record names it; it may be deleted while nothing shards into the store")


def print_network(title: str, network: dict[str, Any], as_json: bool) -> None:
    """Print a network that was exported or imported, with the settings that fit it."""
    if as_json:
        print_json(network)
        return
    clip, notes = network["clip"], network.get("notes", [])
    settings = {f"model.{name}": value for name, value in network["model"].items()}
    if network["normalisation"]:
        numbers = {name: str(values).replace(" ", "") for name, values in clip["normalisation"].items()}
        settings |= {f"data.clip.normalisation.{name}": text for name, text in numbers.items()}
    lines = {
        "settings": " ".join(f"{name}={value}" for name, value in settings.items()),
        "parameters": f"{network['parameters']:,}",
        "clip": f"{clip['frames']} frames of {clip['crop']} x {clip['crop']} pixels",
    }
    rest = ("file", "run", "step", "classes", "class_names")
    print_table(title, lines | {name.replace("_", " "): network[name] for name in rest if name in network})
    for note in notes:
        print(f"  note: {visible(note)}")


def print_predictions(results: dict[str, Any]) -> None:
    """Print of each video the likeliest classes and their probabilities, and which videos gave none."""
    width = max((len(visible(each["class"])) for row in results["videos"] for each in row.get("top", ())), default=0)
    for row in results["videos"]:
        if "failure" in row:
            continue
        clips = "1 clip" if row["clips"] == 1 else f"{row['clips']} clips"
        looped = ", as it is shorter than a clip: its frames are repeated" if row["shorter_than_a_clip"] else ""
        print(f"{visible(row['video'])}  ({clips}{looped})")
        for each in row["top"]:
            print(f"  {visible(each['class']):<{width}}  {100 * each['probability']:6.2f} %")
        if "picture" in row:
            print(f"  picture: {visible(row['picture'])}")
    if results["failed"]:
        print(f"failed: {results['failed']} of {len(results['videos'])} videos")
        for row in results["videos"]:
            if "failure" in row:
                print(f"  {visible(row['video'])}: {visible(row['failure'])}")
    sys.stdout.flush()


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Print a title, and a line for each row."""
    print(visible(title))
    for name, value in rows.items():
        print(f"  {visible(name):<22} {visible(value)}")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print a value as JSON; with --json a command prints nothing else on standard output."""
    print(json.dumps(value, indent=1).replace("\x7f", "\\u007f"))  # the one control that JSON leaves as it is


def _bars(title: str, counts: dict[str, int], most: int = 12, width: int = 40) -> str:
    """A small histogram: the largest of `counts` in their order, the rest summed up. "" for nothing."""
    if not counts:
        return ""
    kept = set(sorted(counts, key=lambda name: -counts[name])[:most])
    longest, bar = max(counts.values()), _drawn("█", "#")
    lines = [title]
    for name, count in counts.items():
        if name in kept:
            lines.append(f"  {visible(name)[:30]:<30} {count:>10,} {bar * max(1, round(width * count / longest))}")
    rest = len(counts) - len(kept)
    if rest:
        lines.append(f"  {f'… and {rest} more':<30} {sum(counts.values()) - sum(counts[name] for name in kept):>10,}")
    return "\n".join(lines) + "\n"


def _drawn(character: str, otherwise: str) -> str:
    """The character, where standard output's encoding has it."""
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return otherwise
    return character

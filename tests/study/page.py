"""The study's page: a table, a picture, and what holds of the paper's claims, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.study.plan import FRAMES, LENGTHS, REFERENCE, VIDEOS_A_CLASS
from tests.study.results import Result, claims, network_rows, of_length, of_network, of_transfer, share

BEGIN, END = "<!-- study: written by make study -->", "<!-- study: its end -->"
_CURVES = (REFERENCE, "r3d", "r3drelu", "fr2d")


def tables(results: Sequence[Result]) -> str:
    """The claims and the networks' figures, as Markdown."""
    seeds = len({result.trial.seed for result in results})
    videos = results[0].videos
    lines = [
        f"Depth 10, parameters of R(2+1)D-10 at a quarter of its width, {FRAMES} frames of 32² pixels, {seeds} seeds, "
        f"{videos} unseen videos of eight motions; ± one standard error, by the seeds and by the number of videos.",
        "",
        "| the papers' claim | here | by |",
        "|---|---|---|",
        *(f"| {claim.text} | **{claim.verdict}** | {claim.figures} |" for claim in claims(results)),
        "",
        "| network | parameters | MMACs a clip | video@1 | clip@1 | motion or its reverse | training loss |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {size:,} | {work / 1e6:.1f} | {video1} | {clip1} | {turn} | {loss:.3f} |"
            for name, size, work, video1, clip1, turn, loss in network_rows(results)
        ),
    ]
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Result], path: Path) -> None:
    """Four pictures in one: accuracy by work, losses, accuracy by clip length, and what pretraining is worth."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    _draw_work(axes[0][0], results)
    _draw_losses(axes[0][1], results)
    _draw_lengths(axes[1][0], results)
    _draw_transfer(axes[1][1], results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def with_section(document: str, section: str) -> str:
    """A document whose part between the study's marks is this one. Raises ValueError where it has no marks."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{section}{END}{after}"


def _draw_work(axes: Axes, results: Sequence[Result]) -> None:
    for name, _, work, video1, *_ in network_rows(results):
        axes.errorbar(work / 1e6, 100 * video1.mean, 100 * video1.error, fmt="o", capsize=2)
        axes.annotate(name, (work / 1e6, 100 * video1.mean), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(title="Accuracy by work, at equal parameters", xlabel="million multiply-accumulates a clip")
    axes.set_ylabel("video@1, %")


def _draw_losses(axes: Axes, results: Sequence[Result]) -> None:
    for number, network in enumerate(each for each in _CURVES if of_network(results, each)):
        runs = of_network(results, network)
        for kind, style in (("train", "-"), ("validation", "--")):
            curves = [getattr(run, kind) for run in runs]
            points = [(clips, statistics.fmean(curve[at][1] for curve in curves))
                      for at, (clips, _) in enumerate(curves[0])]  # fmt: skip
            label = network if kind == "train" else None
            axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
    axes.set(title="Loss: training, and validation (dashed)", xlabel="clips", ylabel="cross-entropy")
    axes.legend()


def _draw_lengths(axes: Axes, results: Sequence[Result]) -> None:
    lengths = [frames for frames in LENGTHS if of_length(results, frames)]
    for name in ("clip1", "video1"):
        shares = [share(of_length(results, frames), name) for frames in lengths]
        label = {"clip1": "clip@1", "video1": "video@1"}[name]
        axes.errorbar(lengths, [100 * each.mean for each in shares], [100 * each.error for each in shares],
                      fmt="o-", capsize=2, label=label)  # fmt: skip
    axes.set(title="R(2+1)D by clip length", xlabel="frames", ylabel="accuracy, %", xticks=lengths)
    axes.legend()


def _draw_transfer(axes: Axes, results: Sequence[Result]) -> None:
    for shift, (tuned, label) in ((-0.2, (True, "fine-tuned")), (0.2, (False, "from scratch"))):
        groups = [of_transfer(results, videos, tuned) for videos in VIDEOS_A_CLASS]
        shares = [(place, share(group, "video1")) for place, group in enumerate(groups) if group]
        axes.bar([place + shift for place, _ in shares], [100 * each.mean for _, each in shares], 0.4,
                 yerr=[100 * each.error for _, each in shares], capsize=2, label=label)  # fmt: skip
    axes.axhline(12.5, color="grey", linestyle=":", label="chance")
    axes.set(title="Eight other motions, from few videos", xlabel="training videos of each class", ylabel="video@1, %")
    axes.set_xticks(range(len(VIDEOS_A_CLASS)), [str(videos) for videos in VIDEOS_A_CLASS])
    axes.legend()

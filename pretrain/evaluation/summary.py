"""Writes the results of an evaluation: accuracies over all videos and by class, and pictures of some."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.damage_budget import allowed_damage, damage_error
from pretrain.data.reading.store_split import DamagedData, Sample
from pretrain.data.views.frames import evaluation_starts
from pretrain.evaluation.evaluate import EvaluateSettings, Subject
from pretrain.evaluation.files import FORMAT, PartialScores, evaluation_folder, write_files
from pretrain.evaluation.frames_shown import frames_shown
from pretrain.evaluation.fusion import FuseSettings, Fusion, Reported, fuse_scores, open_other_evaluation, search_weight
from pretrain.evaluation.video_score import VideoScore, best_rank
from pretrain.scoring.accuracy import CONFIDENCE, accuracies, wilson
from pretrain.scoring.calibration import calibration
from pretrain.scoring.confusion import confident_errors

log = logging.getLogger("reelscale")

_ERRORS = 24  # listed in the summary
_THUMBS = 48
_THUMB_FRAMES = 6


def folder_of(subject: Subject) -> Path:
    """Where the evaluation's files go."""
    split = subject.split
    return evaluation_folder(subject.run, split.store.url, split.index.version, split.name, subject.protocol.name)


def partial_scores_of(subject: Subject) -> PartialScores:
    """The scores that are there already, and to which more come."""
    identity = {
        "weights": _weights_digest(subject.weights),
        "index": subject.split.index.version,
        "split": subject.split.name,
        "protocol": subject.protocol.identity,
    }
    return PartialScores(folder_of(subject), identity)


def fusion_of(subject: Subject, settings: EvaluateSettings) -> Fusion | None:
    """What is to be fused, if something is, and by which weight.

    Raises UserError where it cannot be, or a weight cannot be searched: before anything is scored.
    """
    fuse, split, protocol = settings.fuse, subject.split, subject.protocol
    if fuse is None:
        return None
    samples = samples_of(subject, subject.rows)
    other = open_other_evaluation(fuse, samples, subject.classes, split.index.version, protocol)
    if fuse.search_split is None:
        return Fusion(other, fuse.weight, None)
    keys = frozenset(sample.key for sample in samples if sample)
    searched = search_weight(fuse, Reported(subject.run, subject.step, split.name, keys, protocol), other)
    return Fusion(other, searched.weight, searched)


def write_evaluation(
    subject: Subject, settings: EvaluateSettings, scores: Sequence[VideoScore], fusion: Fusion | None = None
) -> dict[str, Any]:
    """Write the evaluation's files (`pretrain.evaluation.files`) and return the summary.

    fusion: with what `settings.fuse` names, where it names something. A video whose record has been damaged since it
    was scored is a damaged one. Raises UserError where nothing can be written, and where these make too many of them.
    """
    scores = sorted(scores, key=lambda score: score.row)
    looked_up = [_sample_or_damage(subject, score.row) for score in scores]
    scores = _with_damage_since(subject, settings, scores, looked_up)
    samples = [each if isinstance(each, Sample) else None for each in looked_up]
    labels = [sample.labels if sample else () for sample in samples]
    errors = confident_errors([score.predicted for score in scores], [score.confidence for score in scores], labels)
    folder = folder_of(subject)
    summary = {
        **_figures(subject, scores, labels),
        "errors": [_error(subject.classes, scores[place], samples[place]) for place in errors[:_ERRORS]],
        "several_labels": sum(len(set(of)) > 1 for of in labels),
        "damaged": sum(score.damaged is not None for score in scores),
        "left_out": subject.left_out,
        "notes": subject.notes,
        "step": subject.step,
        "store": subject.split.store.url,
        "index": subject.split.index.version,
        "split": subject.split.name,
        "clips_a_video": subject.protocol.clips,
        "protocol": {**subject.protocol.identity, "words": subject.protocol.words},
        "weights": str(subject.run),
        "folder": str(folder),
        "classes": subject.classes,
    }
    if fusion is not None and settings.fuse is not None:
        summary["fused"] = _fused(settings.fuse, fusion, subject.classes, scores, samples)
    write_files(folder, summary, scores, samples, _thumbs(subject, scores, samples, errors))
    return summary


def _with_damage_since(
    subject: Subject,
    settings: EvaluateSettings,
    scores: Sequence[VideoScore],
    looked_up: Sequence[Sample | DamagedData],
) -> Sequence[VideoScore]:
    """The scores, with damage in the place of those whose records are damaged by now: each is named, and wrong."""
    lost = {
        score.row: VideoScore(score.row, None, None, score.clips, 0, str(sample))
        for score, sample in zip(scores, looked_up, strict=True)
        if isinstance(sample, DamagedData) and score.damaged is None
    }
    if not lost:
        return scores
    for damage in dict.fromkeys(score.damaged for score in lost.values()):
        log.warning("damaged: %s; counted as wrong", damage)
    scores = [lost.get(score.row, score) for score in scores]
    require_sound(scores, subject, settings.damaged)
    return scores


def _fused(
    settings: FuseSettings,
    fusion: Fusion,
    classes: Sequence[str],
    scores: Sequence[VideoScore],
    samples: Sequence[Sample | None],
) -> dict[str, Any]:
    """The fusion's figures; of a searched weight also where it was found."""
    own = [score.logits if settings.of == "logits" else score.scores for score in scores]
    theirs = [fusion.other.scores.get(sample.key) if sample else None for sample in samples]
    sums = [fuse_scores(*rows, fusion.weight) for rows in zip(own, theirs, strict=True)]
    labels = [sample.labels if sample else () for sample in samples]
    searched = fusion.searched
    return {
        **settings.model_dump(mode="json"),
        "weight": fusion.weight,
        **({"searched": {**searched.identity, "words": searched.words}} if searched else {}),
        "folder": str(fusion.other.folder),
        **accuracies(classes, labels, [best_rank(*each) for each in zip(sums, labels, strict=True)]),
    }


def _figures(subject: Subject, scores: Sequence[VideoScore], labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """All figures of the videos, with the intervals that hold the true ones with a `confidence`."""
    ranks = [best_rank(score.scores, of) for score, of in zip(scores, labels, strict=True)]
    clips, right = sum(score.clips for score in scores), sum(score.clips_right for score in scores)
    figures = accuracies(subject.classes, labels, ranks)
    if all(score.clips == 1 for score in scores) and subject.protocol.crops == 1:
        assert right == sum(rank < 1 for rank in ranks), "clips and videos were not judged by the same classes"
    # A video's clips are no draws of their own: clip@1's interval is that of so many videos, too.
    intervals = {"clip1": list(wilson(right / clips, len(scores))), **figures["intervals"]}
    sound = [place for place, score in enumerate(scores) if score.damaged is None]
    return {
        "videos": len(scores),
        "clips": clips,
        "format": FORMAT,
        "clip1": right / clips,
        **figures,
        "intervals": intervals,
        "confidence": CONFIDENCE,
        "calibration": calibration(
            [scores[place].confidence for place in sound], [ranks[place] < 1 for place in sound]
        ),
    }


def _error(classes: Sequence[str], score: VideoScore, sample: Sample | None) -> dict[str, Any]:
    assert sample is not None and score.predicted is not None, "it was scored"
    names = [classes[number] for number in sample.labels]
    predicted = classes[score.predicted]
    return {
        "key": sample.key, "uri": sample.uri, "labels": names, "predicted": predicted, "score": score.confidence,
    }  # fmt: skip


def require_sound(scores: Sequence[VideoScore], subject: Subject, share: float) -> None:
    """Raises UserError, with the list, where more than the share of the subject's videos is damaged."""
    damaged = [score.damaged for score in scores if score.damaged is not None]
    most = allowed_damage(len(subject.rows), share)
    if len(damaged) > most:
        what = f"damaged videos: {len(damaged)} of {len(subject.rows)}; damaged={share:g} allows {most}"
        raise damage_error(what, list(dict.fromkeys(damaged)), subject.split.store.url, "damaged")


def samples_of(subject: Subject, rows: Sequence[int]) -> list[Sample | None]:
    """The subject's videos in these rows; None where a record is damaged."""
    looked_up = [_sample_or_damage(subject, row) for row in rows]
    return [each if isinstance(each, Sample) else None for each in looked_up]


def _sample_or_damage(subject: Subject, row: int) -> Sample | DamagedData:
    try:
        return subject.split.sample(row)
    except DamagedData as damage:
        return damage


def _thumbs(
    subject: Subject, scores: Sequence[VideoScore], samples: Sequence[Sample | None], errors: Sequence[int]
) -> bytes | None:
    """A few frames of the middle clip of the most confident errors and of other videos; an npz file."""
    sheets, rows, clip = [], [], subject.clip
    for place in _thumb_places([score.damaged is None for score in scores], errors):
        sample = samples[place]
        assert sample is not None, "it was scored"
        first = evaluation_starts(sample.frames, clip.needed_frames(sample.times), 1)[0]
        try:
            sheets.append(frames_shown(subject.split.store, sample, clip, first, _THUMB_FRAMES))
        except DamagedData:  # since it was scored
            continue
        rows.append(place)
    if not sheets:
        return None
    file = io.BytesIO()
    np.savez_compressed(file, frames=np.stack(sheets), rows=np.asarray(rows, np.int64))
    return file.getvalue()


def _thumb_places(sound: Sequence[bool], errors: Sequence[int]) -> list[int]:
    """Half of them, at most, the first errors, and the rest spread over the sound videos; in order."""
    chosen = set(errors[: _THUMBS // 2])
    others = [place for place, each in enumerate(sound) if each and place not in chosen]
    count = min(len(others), _THUMBS - len(chosen))
    return sorted(chosen | {others[i * len(others) // count] for i in range(count)})


def _weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of a network's weights, whatever checkpoint they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

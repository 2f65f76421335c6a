"""Which checkpoints are kept, in a run's folder and in its store alike: a pure function of their manifests."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from pretrain.checkpoints.checkpoint_manifest import CheckpointManifest

Place = TypeVar("Place", bound=Hashable)


def to_discard(places: Mapping[Place, CheckpointManifest | None], saved: CheckpointManifest, keep: int) -> list[Place]:
    """The places whose checkpoints go once `saved` is committed: those not `kept`, and those without a sound manifest.

    places: the manifest at each place; None for what is damaged or incomplete. What a newer attempt than `saved`'s
    committed stays: it is that one's to judge.
    """
    own = {place: manifest for place, manifest in places.items() if manifest and manifest.attempt <= saved.attempt}
    keepers = kept(own.values(), saved, keep)
    damaged = [place for place, manifest in places.items() if manifest is None]
    return damaged + [place for place, manifest in own.items() if manifest not in keepers]


def kept(manifests: Iterable[CheckpointManifest], saved: CheckpointManifest, keep: int) -> list[CheckpointManifest]:
    """Of sound checkpoints those to keep once `saved` is: the newest `keep` up to it, and the best by clip@1.

    What is beyond it is not kept: the run had begun there again, or it could not be read. Of a step saved twice
    the newer attempt's counts; of equally good ones the last.
    """
    by_step = {each.step: each for each in sorted(manifests, key=lambda each: each.attempt) if each.step <= saved.step}
    in_order = [by_step[step] for step in sorted(by_step)]
    validated = [each for each in in_order if each.clip1 is not None]
    best = max(validated, key=lambda each: (each.clip1, each.step), default=None)
    newest = in_order[-keep:]
    return newest if best is None or best in newest else [best, *newest]

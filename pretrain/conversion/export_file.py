"""An exported network: one safetensors file with its weights and all that a user of them must know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.conversion.file_kind import kind_of
from pretrain.conversion.published import read_safetensors
from pretrain.data.views.views import ClipSettings
from pretrain.models.zoo import ModelSettings
from sharding.base.atomic import atomic_write
from sharding.base.errors import UserError
from sharding.base.settings import validate
from sharding.base.text import nfc

FORMAT = "1"
_MARK = "reelscale"  # the metadata's key that holds the format's version


@dataclass(frozen=True)
class Export:
    """A network, its weights by name, and what they are for; `provenance` is JSON: where they come from.

    `stored`: the settings of `shard` by which the videos were stored that it learned from; None where not known.
    """

    model: ModelSettings
    classes: list[str]
    clip: ClipSettings
    provenance: dict[str, Any]
    state: dict[str, Tensor]
    stored: dict[str, Any] | None = None

    @property
    def normalisation(self) -> dict[str, Any] | None:
        """How a clip enters: less `mean`, over `std`; pictures, 0…255, are brought to `range` first, flow is in pixels.

        Of a clip of both, `range` is for the first `range_channels` alone, those of the pictures. None for a network of
        other channels than the clip's.
        """
        if self.model.in_channels != self.clip.channels:
            return None
        enters = self.clip.normalisation.model_dump(mode="json")
        if self.clip.input == "flow":
            return enters
        return {**enters, "range": [0, 1], **({"range_channels": 3} if self.clip.input == "rgb+flow" else {})}


def write_export(file: Path, export: Export) -> None:
    """Write the export whole or not at all; a file that was there is replaced.

    Its metadata is JSON under the keys `model`, `classes`, `input`, `normalisation`, `provenance` and `stored`.
    Raises UserError for a name without .safetensors, and where nothing can be written.
    """
    if file.suffix != ".safetensors":
        raise UserError("an export is a safetensors file", str(file), "give it a name that ends in .safetensors")
    clip = export.clip
    shape = [export.model.in_channels, clip.frames, clip.crop, clip.crop]  # C T H W
    described = {
        "model": export.model.model_dump(mode="json"),
        "classes": export.classes,
        "input": {
            "shape": shape,
            **clip.model_dump(mode="json", exclude=None if export.normalisation else {"normalisation"}),
        },
        "normalisation": export.normalisation,
        "provenance": export.provenance,
        "stored": export.stored,
    }
    metadata = {"format": "pt", _MARK: FORMAT} | {key: json.dumps(value) for key, value in described.items()}
    state = {name: value.detach().cpu().contiguous() for name, value in export.state.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            save_file(state, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file cannot be written: {error}", str(file), "name a file that can be written") from error


def is_export(file: Path) -> bool:
    """Whether the file is an export, and not just weights in safetensors."""
    return file.is_file() and kind_of(file) == "safetensors" and _MARK in _metadata(file)


def read_export(file: Path) -> Export:
    """Read what `write_export` wrote, every bit of it.

    Raises UserError for a file that is missing, damaged, no export, or an export of a later version.
    """
    if kind_of(file) != "safetensors":
        raise UserError("the file is not an export", str(file), "give a file that `reelscale export` wrote")
    metadata = _metadata(file)
    if metadata.get(_MARK) != FORMAT:
        found = f"of format {metadata[_MARK]}, this version reads {FORMAT}" if _MARK in metadata else "not an export"
        raise UserError(f"the file is {found}", str(file), "give a file that `reelscale export` of this version wrote")
    try:
        described = {key: json.loads(value) for key, value in metadata.items() if key not in ("format", _MARK)}
        clip = {key: value for key, value in described["input"].items() if key != "shape"}
        return Export(
            validate(ModelSettings, described["model"], str(file)),
            [nfc(str(name)) for name in described["classes"]],
            validate(ClipSettings, clip, str(file)),
            dict(described["provenance"]),
            read_safetensors(file),
            dict(stored) if (stored := described.get("stored")) is not None else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the export's description is damaged: {error!r}", str(file), "export it again") from error


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file cannot be read: {error}", str(file), "fetch it again") from error

"""A process that starts a loader and tells when its first batch is there: what the loader's benchmark times."""

from __future__ import annotations

import json
import time


def first_batch(url: str, share: float, began: float) -> None:
    """Print seconds since `began` (time.time()): python and its imports, the store opened, the first batch.

    The run goes on at `share` of a pass.
    """
    from pretrain.data.loader import Loader
    from pretrain.data.sources import DataSettings, open_sources, order_of

    seconds = {"imported": time.time() - began}
    data = DataSettings.model_validate({"store": url, "loader": {"workers": 2}})
    sources = open_sources(data)
    order = order_of(sources, data, 0, 1, 8)
    seconds["opened"] = time.time() - began
    with Loader(sources, order, data.clip, data.loader, range(1)) as loader:
        loader.load_state_dict(loader.state_dict() | {"step": int(share * sources.samples) // 8})
        next(iter(loader))
        seconds["first_batch"] = time.time() - began
    print(json.dumps(seconds))

"""The job `shards verify`: a store read again, with progress."""

from dataclasses import asdict
from typing import Any, cast, get_args

from cluster.launch.signals import raise_if_interrupted
from cluster.progress import progress
from sharding.errors import UserError
from sharding.store import open_store
from sharding.verify import Decode, Progress, verify


def run_verification(url: str, decode: str, workers: int) -> dict[str, Any]:
    """What was read and what is damaged. Raises UserError if it is no store, or `decode` is none of the choices."""
    if decode not in get_args(Decode):
        what = f"--decode {decode}: it should be one of {', '.join(get_args(Decode))}"
        raise UserError(what, "the command line", "choose one of them")
    shown = 0
    with progress("verify", 0) as advance:

        def tell(told: Progress) -> None:
            nonlocal shown
            raise_if_interrupted()
            read = f"of {told.total:,} shards  {told.samples:,} samples  {told.bytes / 1e6:,.1f} MB"
            advance(told.shards - shown, read)
            shown = told.shards

        found = verify(open_store(url), cast(Decode, decode), workers or None, tell)
    damages = [asdict(damage) | {"where": damage.where} for damage in found.damages]
    return asdict(found) | {"damages": damages}

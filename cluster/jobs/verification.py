"""The job `shards verify`: a store read again, with progress."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, cast, get_args

from cluster.launch.signals import raise_if_interrupted
from cluster.terminal.progress import Advance, progress
from sharding.base.errors import UserError
from sharding.inspect.shard_report import Decode
from sharding.inspect.verify import VerifyProgress, verify
from sharding.storage.store import open_store


def run_verification(url: str, decode: str, workers: int) -> dict[str, Any]:
    """The report of what was read and what is damaged, as a dictionary.

    Raises UserError if it is no store, or `decode` is none of the choices.
    """
    if decode not in get_args(Decode):
        what = f"--decode {decode}: it should be one of {', '.join(get_args(Decode))}"
        raise UserError(what, "the command line", "choose one of them")
    shown = 0
    advance: Advance | None = None
    with ExitStack() as stack:

        def show(read: VerifyProgress) -> None:
            nonlocal shown, advance
            raise_if_interrupted()
            advance = advance or stack.enter_context(progress("verify", read.total))
            advance(read.shards - shown, f"{read.samples:,} samples  {read.bytes / 1e6:,.1f} MB")
            shown = read.shards

        report = verify(open_store(url), cast(Decode, decode), workers or None, show)
    damages = [asdict(damage) | {"where": damage.where} for damage in report.damages]
    return asdict(report) | {"damages": damages}

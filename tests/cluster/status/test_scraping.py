"""Processes asked over real sockets: one that answers, one that wants a token, one that hangs, a thousand."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.monitor.endpoint import endpoint
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.monitor.settings import AccessSettings, MonitorSettings
from cluster.monitor.targets import Target
from cluster.status.pages import parse_page
from cluster.status.scraping import ask, open_reader
from cluster.status.watch import Watch
from pretrain.resilience.progress import Progress
from sharding.base.errors import UserError


def test_who_answers_who_wants_a_token_and_who_does_not(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-word\n")
    access = AccessSettings(secret_file=str(tmp_path / "token"))
    settings = MonitorSettings(port=0, targets=str(tmp_path / "targets"), access=access)
    with (
        endpoint(settings, "pretrain", "/runs/a", Progress("step")) as served,
        socket.create_server(("127.0.0.1", 0)) as hangs,
        socket.socket() as closed,
    ):
        assert served
        closed.bind(("127.0.0.1", 0))
        places = [urlsplit(served.url).netloc, *(f"127.0.0.1:{each.getsockname()[1]}" for each in (hangs, closed))]
        targets = [Target(place) for place in places]
        answers, silent, gone = ask(targets, open_reader(ScrapeSettings()), seconds=2)
        assert (answers.ready, answers.page, answers.withheld) == (True, None, "its figures want a token or a password")
        assert answers.line.startswith("ok: starting")
        assert (silent.ready, gone.ready) == (None, None)
        assert silent.line.startswith("no word within 2 s") and gone.line == "connection refused: it is gone"
        reader = open_reader(ScrapeSettings(token_file=str(tmp_path / "token")))
        (answers,) = ask(targets[:1], reader)
        assert parse_page(answers.page or "").labels("reelscale_ready")["run"] == "a"

        by_name = Watch(["a"], ScrapeSettings(targets=str(tmp_path / "targets")))
        (run,) = by_name.look().runs
        assert (run.run, run.kind, run.outcome) == ("a", "pretrain", "troubled") and "want a token" in run.reason
    (run,) = by_name.look().runs
    assert (run.outcome, run.reason) == ("stopped", "its process has ended")


def test_a_thousand_that_are_gone() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = Target(f"127.0.0.1:{closed.getsockname()[1]}")
        replies = ask([target] * 1000, open_reader(ScrapeSettings()))
    assert len(replies) == 1000 and {reply.line for reply in replies} == {"connection refused: it is gone"}


def test_secrets_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "two").write_text("two words")
    for name in ("absent", "two"):
        with pytest.raises(UserError):
            open_reader(ScrapeSettings(token_file=str(tmp_path / name)))
    with pytest.raises(UserError):
        open_reader(ScrapeSettings(ca_file=str(tmp_path / "two")))

"""Ranks that the lanes have no use for: how they learn of the run's end, and of ranks that are gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from pretrain.engine.distributed import free_port
from pretrain.resilience import spare_ranks
from pretrain.resilience.spare_ranks import tells_spares, wait_as_spare
from sharding.base.errors import CommandFailed


@pytest.fixture(autouse=True)
def meeting(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of rank 0, which this process is; what takes seconds takes less."""
    port = free_port()
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(spare_ranks, "_BEAT_SECONDS", 0.1)
    return port


class Spare(threading.Thread):
    """A spare rank in a thread."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.code: int | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.code = wait_as_spare(self.folder)
        except CommandFailed as error:
            self.error = error


@pytest.mark.parametrize("code", [0, 75])
def test_spare_ranks_end_as_the_run_does(code: int, tmp_path: Path) -> None:
    spares = [Spare(tmp_path) for _ in range(2)]
    with tells_spares(2) as end:
        for spare in spares:
            spare.start()
        end.code = code
    for spare in spares:
        spare.join(60)
    assert [spare.code for spare in spares] == [code, code]


def test_a_run_that_fails_ends_its_spare_ranks(tmp_path: Path) -> None:
    spare = Spare(tmp_path)
    with pytest.raises(ZeroDivisionError), tells_spares(1):
        spare.start()
        raise ZeroDivisionError
    spare.join(60)
    assert spare.code == 1


def test_the_end_of_a_former_start_ends_nothing(meeting: int, tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", meeting, is_master=True, wait_for_workers=False, multi_tenant=True)
    store.set(spare_ranks._BEAT, "former 7")
    store.set(spare_ranks._OVER + "former", "75")
    spare = Spare(tmp_path)
    spare.start()
    with tells_spares(1) as end:
        end.code = 0
    spare.join(60)
    assert spare.code == 0


@pytest.mark.slow
def test_silence_and_a_store_that_is_gone_end_a_spare_rank(
    meeting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_ranks, "_LOST_SECONDS", 1.0)
    store = TCPStore("127.0.0.1", meeting, is_master=True, wait_for_workers=False, multi_tenant=True)
    spare = Spare(tmp_path)
    spare.start()
    count, deadline = 0, threading.Event()
    while spare.is_alive() and count < 5:
        store.set(spare_ranks._BEAT, f"now {count}")
        count += 1
        deadline.wait(0.2)
    spare.join(60)
    assert "nothing was heard of the first" in str(spare.error)

    monkeypatch.setattr(spare_ranks, "_CONNECT_SECONDS", 1.0)
    del store
    unanswered = Spare(tmp_path)
    unanswered.start()
    unanswered.join(60)
    assert "their store does not answer" in str(unanswered.error)


def test_without_spare_ranks_no_store_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_ranks, "_store", lambda hosts: pytest.fail("a store was opened"))
    with tells_spares(0):
        pass
    monkeypatch.setenv("RANK", "1")
    with tells_spares(3):
        pass

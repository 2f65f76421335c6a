"""Questions to what hangs: nobody waits for long, one thread waits for all, and no old answer passes for a new one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from sharding.telemetry.probe import Probe

PATIENCE = 0.2


class Disk:
    """Something that is asked; it hangs until `go` is set, and counts the questions."""

    def __init__(self) -> None:
        self.go, self.asked, self.error = threading.Event(), 0, False
        self.go.set()

    def __call__(self) -> int:
        self.asked += 1
        self.go.wait(60)
        if self.error:
            raise OSError("the disk is gone")
        return self.asked


@pytest.fixture()
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.go.set()


def test_an_answer_holds_for_a_while(disk: Disk) -> None:
    probe = Probe(disk, patience=30, fresh=3600)
    assert [probe.answer() for _ in range(50)] == [1] * 50 and disk.asked == 1


def test_an_old_answer_is_asked_for_again(disk: Disk) -> None:
    probe = Probe(disk, patience=30, fresh=0)
    assert [probe.answer() for _ in range(3)] == [1, 2, 3]


def test_what_hangs_holds_up_each_scrape_for_no_more_than_a_moment_and_one_thread(disk: Disk) -> None:
    probe = Probe(disk, patience=PATIENCE, fresh=0)
    while probe.answer() is None:
        time.sleep(0.01)
    disk.go.clear()
    asked = disk.asked
    answers: list[int | None] = []
    threads = [threading.Thread(target=lambda: answers.append(probe.answer())) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [None] * 40 and disk.asked == asked + 1  # the old answer does not pass for a new one
    assert [thread.name for thread in threading.enumerate()].count("metrics-probe") == 1
    disk.go.set()
    while (answer := probe.answer()) is None:
        time.sleep(0.01)
    assert answer > asked


def test_what_raises_gives_no_answer_until_it_answers_again(disk: Disk) -> None:
    probe = Probe(disk, patience=30, fresh=0)
    disk.error = True
    assert probe.answer() is None
    disk.error = False
    assert probe.answer() == 2

"""What is taken for what: small matrices by hand, and the readable part of one of 400 classes."""

from __future__ import annotations

import numpy as np

from pretrain.scoring.confusion import confident_errors, confused_pairs, confusion, most_confused

COUNTS = np.asarray([[5, 0, 1, 0], [0, 9, 0, 0], [4, 0, 2, 1], [0, 0, 1, 3]], np.int64)


def test_a_video_of_several_labels_is_of_the_one_that_was_predicted() -> None:
    labels = [(0,), (0, 2), (0, 2), (1,), (), (1,)]
    predictions = [1, 2, 1, 1, 0, None]
    assert confusion(labels, predictions, 3).tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 1]]


def test_pairs_come_by_their_number() -> None:
    assert confused_pairs(COUNTS, 3) == [(2, 0, 4), (0, 2, 1), (2, 3, 1)]
    assert confused_pairs(np.diag([3, 4]), 5) == []


def test_all_of_a_small_matrix_is_shown_with_the_confused_side_by_side() -> None:
    block = most_confused(COUNTS, 4)
    assert block.numbers == [0, 2, 3, 1]
    assert block.counts.tolist() == COUNTS[np.ix_(block.numbers, block.numbers)].tolist()
    assert block.others.tolist() == [0, 0, 0, 0]


def test_of_a_large_matrix_the_part_with_the_confusions_is_shown() -> None:
    draw = np.random.default_rng(3)
    counts = np.diag(draw.integers(20, 50, 400))
    pairs = [(7, 300), (300, 7), (12, 13), (399, 0), (55, 300)]
    for number, (truth, taken) in enumerate(pairs):
        counts[truth, taken] = 10 - number
    counts[7, 200] = 1  # too rare to be shown
    block = most_confused(counts, 7)
    assert set(block.numbers) == {7, 300, 55, 12, 13, 399, 0}
    places = {number: place for place, number in enumerate(block.numbers)}
    assert all(abs(places[one] - places[other]) == 1 for one, other in ((7, 300), (12, 13), (399, 0), (55, 300)))
    for row, number in enumerate(block.numbers):
        assert block.counts[row].sum() + block.others[row] == counts[number].sum()
        assert block.others[row] == (1 if number == 7 else 0)
    # A pair that does not fit is passed over for a rarer one that does.
    assert set(most_confused(counts, 3).numbers) == {7, 300, 55}


def test_where_nothing_is_confused_nothing_is_shown_of_many() -> None:
    assert most_confused(np.diag(np.ones(400, np.int64)), 20).numbers == []


def test_the_most_confident_errors_come_first() -> None:
    predictions = [0, 1, None, 2, 1]
    scores = [0.9, 0.6, 0.0, 0.8, 0.95]
    assert confident_errors(predictions, scores, [(0,), (0, 2), (1,), (1,), (1, 3)]) == [3, 1]
    assert confident_errors([0, 0], [0.5, 0.5], [(1,), (1,)]) == [0, 1]

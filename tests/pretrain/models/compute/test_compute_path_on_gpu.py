"""On a GPU, too, every compute path computes the same function: a test a network, of all of them, and none compiles."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from pretrain.models.compute.compute_path import COMPUTE_PATHS
from tests.pretrain.models.compute.test_compute_path import assert_bf16_errors, clips, network, taken_step
from tests.support.gpu import needs_gpu

KINDS = ["basic", "bottleneck", "whole"]  # all kinds of layers, strides and joins


@needs_gpu("test_a_path_is_the_plain_network_in_double_precision")
@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_a_path_is_the_plain_network(name: str) -> None:
    """In double precision, which torch computes."""
    plain, batch = network(name).cuda(), clips(name).double().cuda()
    others = {compute_path: copy.deepcopy(plain) for compute_path in COMPUTE_PATHS if compute_path != "plain"}
    plain.use(COMPUTE_PATHS["plain"])
    expected = taken_step(plain, batch)
    for compute_path, other in others.items():
        other.use(COMPUTE_PATHS[compute_path])
        result = taken_step(other, batch)
        assert expected.keys() == result.keys()
        for key in expected:
            assert_close(
                result[key],
                expected[key],
                rtol=1e-9,
                atol=1e-9,
                msg=lambda text, at=(compute_path, key): f"{at}: {text}",
            )


@needs_gpu("test_in_bf16_a_path_errs_no_more_than_the_plain_network")
@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_in_bf16_a_path_errs_no_more_than_the_plain_network(name: str) -> None:
    assert_bf16_errors(name, 4, list(COMPUTE_PATHS), torch.device("cuda"))

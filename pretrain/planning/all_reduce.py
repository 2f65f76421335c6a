"""The arithmetic of summing gradients over ranks: pure functions.

Ranks of a node share theirs over the node's own links first; then each node's sum goes over the network, and the
result back over the links, as NCCL does it. `bytes` are those of one copy of the network's gradients or weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """Ranks and what joins them: bytes a second each way, of a GPU within its node, and of a node to the others."""

    nodes: int
    gpus_per_node: int
    link: float
    network: float
    latency: float


def ring_half(size: float, net: Network) -> float:
    """Seconds of half a ring all-reduce: a reduce-scatter of gradients, or an all-gather of weights.

    (n − 1) / n of the bytes in n − 1 messages, over the links of n GPUs, then over the network of n nodes
    (Patarasuk and Yuan, 2009).
    """
    inside = (net.gpus_per_node - 1) / net.gpus_per_node * size / net.link
    between = (net.nodes - 1) / net.nodes * size / net.network + (net.nodes - 1) * net.latency
    return inside + between


def ring_seconds(size: float, net: Network) -> float:
    """Seconds of an all-reduce by ring: both halves."""
    return 2 * ring_half(size, net)


def tree_seconds(size: float, net: Network) -> float:
    """Seconds of an all-reduce by two binary trees over the nodes: all bytes up and down, in log2(nodes) messages.

    Sanders, Speck and Träff (2009); NCCL's since 2.4.
    """
    inside = 2 * (net.gpus_per_node - 1) / net.gpus_per_node * size / net.link
    if net.nodes == 1:
        return inside
    return inside + 2 * size / net.network + 2 * math.ceil(math.log2(net.nodes)) * net.latency


def halves(zero: int, micro_steps: int) -> tuple[int, int]:
    """How many halves of a ring a step takes at a ZeRO stage: of gradients, of weights.

    Stage 0 sums and spreads gradients; 1 and 2 sum gradients and spread weights, stage 2 gradients in every
    micro-step; 3 fetches weights for the forward and the backward pass of every micro-step (ZeRO, arXiv 1910.02054,
    section 7).
    """
    return {0: (2, 0), 1: (1, 1), 2: (micro_steps, 1), 3: (micro_steps, 2 * micro_steps)}[zero]


def exposed_seconds(exchange: float, backward: float, overlap: float) -> float:
    """Seconds of an exchange that a step waits for: what neither `overlap` nor the backward pass can hide."""
    return exchange - min(overlap * exchange, backward)

"""Ratios of runtimes that took turns: one a round, their median, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfpose_bench.bootstrap import bootstrap_median
from cfpose_sdk.errors import InputError

Rounds = Sequence[Sequence[float]]  # the values of each round


@dataclass(frozen=True)
class Summary:
    """The median over rounds, its 95 % bootstrap interval, and the value of each round."""

    median: float
    low: float
    high: float
    by_round: tuple[float, ...]

    @classmethod
    def of(cls, by_round: Sequence[float]) -> Summary:
        """Summarise at least one round. Raises InputError without one."""
        if not by_round:
            raise InputError("a summary needs at least one round, got none")
        low, high = bootstrap_median(by_round)
        return cls(float(np.median(by_round)), low, high, tuple(map(float, by_round)))


def speedup(base: Rounds, own: Rounds) -> Summary:
    """How many times as fast as `base`: in each round, base's median time by the own one.

    What slows the machine down for a while slows both in the same round. Raises InputError unless
    both have the same rounds.
    """
    if len(base) != len(own):
        raise InputError(f"ratios need the same rounds, got {len(base)} and {len(own)}")
    return Summary.of([_median(b) / _median(o) for b, o in zip(base, own, strict=True)])


def outside_share(total_ms: Rounds, networks_ms: Rounds) -> Summary:
    """The share of a call's time outside its networks: of each call, the median of each round."""
    shares = [
        [1 - inside / total for total, inside in zip(totals, insides, strict=True)]
        for totals, insides in zip(total_ms, networks_ms, strict=True)
    ]
    return Summary.of([_median(share) for share in shares])


def _median(values: Sequence[float]) -> float:
    if len(values) == 0 or min(values) < 0:
        raise InputError(f"a round needs times of 0 or more, got {list(values)}")
    return float(np.median(np.array(values)))

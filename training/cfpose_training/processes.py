"""The processes of one run: which is the first, what they count together, how they part.

Without a group of processes each of these speaks of the one that there is.
"""

from __future__ import annotations

import time

from torch import Tensor, distributed

REST_S = 0.5


def is_first_process() -> bool:
    """Whether this is the first of the processes, or the only one: the one that writes files."""
    return not _is_group() or distributed.get_rank() == 0


def wait_for_processes() -> None:
    """Until every process has come here."""
    if _is_group():
        distributed.barrier()


def shared_count(count: Tensor) -> Tensor:
    """What a process divides its share of a sum by, for `count` () of its own samples; at least 1.

    That is the mean of all processes' counts. Their gradients are averaged, so each sample weighs
    the same, wherever it is; divided by its own count it would weigh more among fewer. Every
    process has to call this, as often as the others.
    """
    if not _is_group():
        return count.clamp(min=1)
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total.clamp(min=1) / distributed.get_world_size()


def leave_processes() -> None:
    """End this process's part in a group of processes; without one, nothing.

    The last call of a program that trains under torchrun, also when it fails. A process that exits
    with its group open aborts now and then, because its threads outlive it. And one whose group
    goes while a thread of gloo is about to drop its last message hangs: the thread waits for the
    interpreter's lock, whose holder waits for the thread. So they get time to come to rest.
    """
    if _is_group():
        time.sleep(REST_S)  # lets go of the lock
        distributed.destroy_process_group()


def _is_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()

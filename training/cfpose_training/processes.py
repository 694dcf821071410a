"""The processes of one run: which one is the first, barriers, shared counts, and their end.

Without a group of processes these functions are about the only process there is.
"""

from __future__ import annotations

import time

from torch import Tensor, distributed

REST_S = 0.5


def is_first_process() -> bool:
    """Whether this process is the first one, or the only one: the one that writes files."""
    return not _is_group() or distributed.get_rank() == 0


def wait_for_processes() -> None:
    """Wait until every process has called this."""
    if _is_group():
        distributed.barrier()


def shared_count(count: Tensor) -> Tensor:
    """The mean count of samples over all processes, at least 1; `count` () is this process's own.

    Each process divides its sum of losses by it. The gradients of the processes are averaged, so
    each sample then has the same weight in every process; divided by the process's own count, a
    sample in a process with few samples would weigh more. Every process has to call this, as often
    as the others.
    """
    if not _is_group():
        return count.clamp(min=1)
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total.clamp(min=1) / distributed.get_world_size()


def leave_processes() -> None:
    """Leave the group of processes; without a group, do nothing.

    This is the last call of a program that trains under torchrun, also when it fails. A process
    that exits with its group open sometimes aborts, because the group's threads outlive it. And a
    process that destroys its group while a thread of gloo is about to drop its last message hangs:
    the thread waits for the interpreter's lock, whose holder waits for the thread. So the threads
    get some time to finish.
    """
    if _is_group():
        time.sleep(REST_S)  # lets go of the lock
        distributed.destroy_process_group()


def _is_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()

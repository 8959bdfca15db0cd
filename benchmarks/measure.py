"""The three measurements: time relative to a reference, peak memory, import time."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import torch

Call = Callable[[], object]

_IMPORT = """
import importlib, time
import torch
from benchmarks.torchvision_shim import define_missing_operators
define_missing_operators()
start = time.perf_counter()
importlib.import_module({module!r})
print(time.perf_counter() - start)
"""


def interleaved_ratios(
    reference: Call,
    calls: Mapping[str, Call],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median over rounds of each call's time divided by the reference's time in the same round.

    A round runs each call once, in random order, so that a slow phase of the machine affects all calls.

    Args:
        reference: The call to divide by.
        calls: What to time, by name.
        rounds: How many rounds, besides one to warm up.
        seconds: After the first round, a call that has taken this long in total skips the remaining rounds.
        clock: What to time with; ``time.process_time`` counts CPU seconds, which other users affect less.

    Returns:
        The median ratio of each call.
    """
    order = random.Random(0)
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    elapsed(reference, clock)
    spent = {name: elapsed(call, clock) for name, call in calls.items()}
    for _ in range(rounds):
        playing: dict[str | None, Call] = {None: reference}
        playing |= {n: call for n, call in calls.items() if not ratios[n] or spent[n] < seconds}
        if len(playing) == 1:
            break
        names = order.sample(list(playing), len(playing))
        took = {name: elapsed(playing[name], clock) for name in names}
        base = took.pop(None)
        for name, value in took.items():
            assert name is not None
            ratios[name].append(value / base)
            spent[name] += value
    return {name: statistics.median(values) for name, values in ratios.items()}


def elapsed(call: Call, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a call takes, once.

    Args:
        call: What to run.
        clock: What to time with.

    Returns:
        Seconds.
    """
    start = clock()
    call()
    return clock() - start


def peak_memory(call: Call) -> int:
    """Peak memory of a call in bytes of tensors, above what was held before it.

    Counted from PyTorch's own record of each allocation on the CPU, which is exact and repeatable, unlike the resident
    memory of the process. It does not include NumPy arrays or scratch space inside kernels.

    Args:
        call: What to run, once.

    Returns:
        Bytes.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    del result
    allocations = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(allocations, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def import_seconds(module: str) -> float:
    """Seconds to import a module in a fresh interpreter that has already imported PyTorch.

    Args:
        module: Dotted name.

    Returns:
        Seconds.
    """
    code = _IMPORT.format(module=module)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's native code writes to the terminal past Python, across the progress bar."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

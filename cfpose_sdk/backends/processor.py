"""What the CPU can do, as the operating system tells."""

from __future__ import annotations

from pathlib import Path

_TOLD = Path("/proc/cpuinfo")
_NAMES = ("flags", "features")  # on x86, on ARM


def processor_flags(told: Path = _TOLD) -> frozenset[str] | None:
    """Its instruction sets in Linux' words, as "avx512_bf16"; None where nobody tells."""
    try:
        lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip().lower() in _NAMES:
            return frozenset(values.split())
    return None

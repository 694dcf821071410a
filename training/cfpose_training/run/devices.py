"""The devices of a run: Fabric and its arithmetic, the form of the network, the memory in use."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from cfpose_bench.peers.serve import memory_mb
from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig, Precision
from cfpose_training.nets.hrnet import HRNet
from cfpose_training.nets.pose_net import Normalise
from cfpose_training.stages.base import Stage


class Autocast(MixedPrecision):
    """Mixed precision of the layers alone; float16 with a scaler of its gradients on every device.

    Fabric's own also rounds what a batch holds: in bfloat16, with 8 bits, a label at pixel 191.3
    becomes 191.
    """

    def convert_input(self, data: Any) -> Any:
        """The batch as it is."""
        return data


def device_type(accelerator: str) -> str:
    """`cuda`, `mps` or `cpu`: where Fabric puts the batches for this --accelerator."""
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "mps", "gpu") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def launch_fabric(accelerator: str, devices: int, precision: Precision) -> Fabric:
    """Start Fabric and its processes. Raises TrainingError when the devices are not there."""
    chosen: dict[str, Any] = {"precision": precision}
    if precision != "32-true":
        chosen = {"plugins": [Autocast(precision, device_type(accelerator))]}
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, **chosen)
        fabric.launch()
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise TrainingError(
            f"cannot run on {devices} device(s) of accelerator {accelerator!r}: {error}; give "
            f"--accelerator auto, cpu or cuda, and as many --devices as there are"
        ) from error
    return fabric


def prepare(stage: Stage, config: OptimConfig) -> None:
    """Bring a stage into the form that a run asks for, in place, before Fabric takes it.

    Raises TrainingError where gradient checkpointing is asked of a network without HRNet's modules.
    """
    if not config.channels_last:
        stage.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for part in stage.modules():
            if isinstance(part, Normalise):
                part.channels_last = False
    if config.checkpointing:
        trained = [part for part in stage.trainable.modules() if isinstance(part, HRNet)]
        if not trained:
            raise TrainingError(
                "checkpointing computes HRNet's maps again instead of keeping them, and this stage "
                "trains no HRNet; leave it false"
            )
        for part in trained:
            part.checkpointing = True
    if config.compile:
        stage.trainable.compile()


def forget_peak(device: torch.device) -> None:
    """Measure the peak of a GPU's memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gb(device: torch.device) -> float | None:
    """10⁹ bytes: of a GPU, what torch has held since `forget_peak`; else of this process, ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    peak = memory_mb()["peak_rss"]
    return None if peak is None else float(peak) / 1e3

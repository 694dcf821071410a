"""An untrained HRNet-W32, and its time in torch on a GPU: what engines are to be compared with.

python benchmarks/gpu_w32.py torch               # prints JSON; code 2 without torch or a GPU
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "examples" / "photos"
BATCHES = (1, 8, 32)
SIZE_WH = (192, 256)
HEAD_GAIN = 300.0
Record = dict[str, Any]


def w32() -> tuple[Any, Any]:
    """(RefinedPoseNet, ModelSpec) of the paper's student, seeded: W32, 256x192, 17 joints."""
    import torch

    from cfpose_sdk.skeleton import COCO_17
    from cfpose_sdk.spec import ModelSpec
    from cfpose_training.nets import hrnet, igp_gcn, pose_net

    spec = ModelSpec("w32-untrained", COCO_17, SIZE_WH)
    torch.manual_seed(0)
    width = hrnet.HRNET_W32.width
    pose = pose_net.PoseNet(hrnet.HRNET_W32, spec)
    config = igp_gcn.IGPGCNConfig(SIZE_WH, (4 * width, 2 * width, width))
    network = pose_net.RefinedPoseNet(pose, igp_gcn.IGPGCN(config, COCO_17), spec)
    _enliven(torch, network, spec)
    return network.eval(), spec


def _enliven(torch: Any, network: Any, spec: Any) -> None:
    """Give fresh weights outputs that depend on the picture, so that they can be compared.

    As initialised, the features of a photo are 1e-8 and every crop has the same flat logits. Batch
    norms take the statistics of a few crops; the head is scaled until half of the joints are sure.
    """
    crops = torch.from_numpy(sample_crops(SIZE_WH)[:8]).flip(-1).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean_rgb, spec.std_rgb))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()((crops - mean) / std)
        for norm in norms:
            norm.momentum = 0.1
        for module in network.pose.head.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(HEAD_GAIN)
                module.bias.mul_(HEAD_GAIN)


def torch_modes() -> Record:
    """W32 in torch, crops on the GPU: float32, and fp16 and bf16 autocast, compiled."""
    import torch

    network: Any = w32()[0].pose.cuda().to(memory_format=torch.channels_last)
    images = torch.randn(max(BATCHES), 3, SIZE_WH[1], SIZE_WH[0], device="cuda")
    images = images.to(memory_format=torch.channels_last)

    def forward(module: Any, batch: int, kind: Any) -> Any:
        with torch.no_grad(), torch.autocast("cuda", kind, enabled=kind is not None):
            return module(images[:batch])[:2]

    exact = forward(network, 8, None)[0].float()

    def measure_mode(module: Any, kind: Any) -> Record:
        found = forward(module, 8, kind)[0].float()
        error = float((found - exact).abs().max() / exact.abs().max())
        ms = times(lambda batch: partial(forward, module, batch, kind), torch.cuda.synchronize)
        return {"relative_logit_error": error, "ms": ms}

    record: Record = {"network": "W32 and head, without decode", "modes": {}}
    compiled = torch.compile(network)
    modes = {
        "eager fp32": (network, None),
        "compiled fp16": (compiled, torch.float16),
        "compiled bf16": (compiled, torch.bfloat16),
    }
    for name, (module, kind) in modes.items():
        try:
            record["modes"][name] = measure_mode(module, kind)
        except Exception as problem:  # a mode that this machine cannot run must not end the others
            record["modes"][name] = {"failed": f"{type(problem).__name__}: {problem}"[:500]}
    return record


def sample_crops(size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """(32, H, W, 3) windows of the repository's photos; seeded noise when there are none."""
    rng = np.random.default_rng(0)
    width, height = size_wh
    read = [cv2.imread(str(path)) for path in sorted(PHOTOS.glob("*.jpg"))]
    photos = [photo for photo in read if photo is not None]
    crops = rng.integers(0, 256, (max(BATCHES), height, width, 3), dtype=np.uint8)
    for crop, photo in zip(crops, photos * max(BATCHES), strict=False):
        h = int(rng.uniform(0.3, 1.0) * min(photo.shape[0], photo.shape[1] * height / width))
        w = h * width // height
        y, x = rng.integers(0, photo.shape[0] - h + 1), rng.integers(0, photo.shape[1] - w + 1)
        crop[:] = cv2.resize(photo[y : y + h, x : x + w], size_wh, interpolation=cv2.INTER_AREA)
    return crops


def times(
    call: Callable[[int], Callable[[], object]], synchronize: Callable[[], object] | None = None
) -> Record:
    """Timing by batch size, in milliseconds a call."""
    from cfpose_bench.measurement import measure

    return {
        str(batch): asdict(measure(call(batch), warmup=20, repeats=200, synchronize=synchronize))
        for batch in BATCHES
    }


def main() -> int:
    """Print the times in torch as JSON; 2 where there is no torch or no GPU."""
    try:
        import torch
    except ImportError as error:
        print(f"torch cannot be imported: {error}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device", file=sys.stderr)
        return 2
    print(json.dumps(torch_modes(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""W32 behind gpu_probe.py: an untrained one for export, and its time in torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from gpu_runtimes import BATCHES, Record, SkippedError, load, open_package, sample_crops, times

SIZE_WH = (192, 256)
HEAD_GAIN = 300.0


def make_w32(output: Path) -> Record:
    """An untrained W32 with its refiner, seeded, through cfpose-export."""
    checkpoint = load("cfpose_training.checkpoints.files")
    export = load("cfpose_export.cli")
    network, spec = w32()
    path = output.with_suffix(".safetensors")
    checkpoint.save_pose(path, network, spec)
    # an untrained refiner moves joints by hundreds of pixels, and rounding errors with them
    proof = ["--max-drift", "0.5"]
    code = export.main(["onnx", "--checkpoint", str(path), "-o", str(output), *proof])
    if code:
        raise RuntimeError(f"cfpose-export ended with exit code {code}")
    return {"bytes": output.stat().st_size}


def w32() -> tuple[Any, Any]:
    """(RefinedPoseNet, ModelSpec) of the paper's student, seeded: W32, 256x192, 17 joints."""
    torch = load("torch")
    open_package("cfpose_training", "training")
    hrnet = load("cfpose_training.nets.hrnet")
    igp_gcn = load("cfpose_training.nets.igp_gcn")
    pose_net = load("cfpose_training.nets.pose_net")
    from cfpose_sdk.skeleton import COCO_17
    from cfpose_sdk.spec import ModelSpec

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
    """W32 in torch, crops on the GPU: float32, bf16 autocast, bf16 compiled."""
    torch = load("torch")
    if not torch.cuda.is_available():
        raise SkippedError(f"torch {torch.__version__} sees no CUDA device")
    network = w32()[0].pose.cuda().to(memory_format=torch.channels_last)
    images = torch.randn(max(BATCHES), 3, SIZE_WH[1], SIZE_WH[0], device="cuda")
    images = images.to(memory_format=torch.channels_last)

    def forward(module: Any, batch: int, lowered: bool) -> Any:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=lowered):
            return module(images[:batch])[:2]

    exact = forward(network, 8, False)[0].float()

    def measure_mode(module: Any, lowered: bool) -> Record:
        found = forward(module, 8, lowered)[0].float()
        error = float((found - exact).abs().max() / exact.abs().max())
        ms = times(lambda batch: partial(forward, module, batch, lowered), torch.cuda.synchronize)
        return {"relative_logit_error": error, "ms": ms}

    record: Record = {"network": "W32 and head, without decode", "modes": {}}
    modes = {"eager fp32": (network, False), "eager bf16": (network, True)}
    modes["compiled bf16"] = (torch.compile(network), True)
    for name, (module, lowered) in modes.items():
        try:
            record["modes"][name] = measure_mode(module, lowered)
        except Exception as problem:  # a mode that this machine cannot run must not end the others
            record["modes"][name] = {"failed": f"{type(problem).__name__}: {problem}"[:500]}
    return record

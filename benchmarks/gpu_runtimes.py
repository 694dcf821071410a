"""GPU runtimes behind gpu_probe.py: onnxruntime-CUDA, TensorRT and TensorRT-RTX."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 8, 32)
PHOTOS = ROOT / "examples" / "photos"

Record = dict[str, Any]
Run = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]


class SkippedError(Exception):
    """The step cannot run here; the message says why."""


def open_package(name: str, folder: str) -> None:
    """Make the modules of a package importable without the extras that the package asks for."""
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / folder / name)]
        sys.modules[name] = package


def load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SkippedError(f"{name} cannot be imported: {error}") from error


def onnxruntime_cuda(model: Path) -> Record:
    """onnxruntime on CUDA: keypoints against the CPU's, and time with copies from host memory."""
    load("onnxruntime")
    from cfpose_sdk.backends import open_backend
    from cfpose_sdk.errors import BackendError

    try:
        backend = open_backend(model, device="cuda")
    except BackendError as error:
        raise SkippedError(str(error)) from error
    crops = sample_crops(size_of(model))
    with backend, open_backend(model, device="cpu") as cpu:
        return {
            "provider": backend.provider,
            "against_cpu": drift(lambda c: backend.run({"crops": c}), cpu_run(cpu), crops),
            "ms": times(lambda batch: lambda: backend.run({"crops": crops[:batch]})),
        }


def bench(model: Path) -> Record:
    """cfpose-bench on the GPU over the examples' photos: stages, people curve, memory."""
    load("pycocotools")
    load("tqdm")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [sys.executable, "-m", "cfpose_bench.cli", "--dataset", "demo", "--rounds", "1"]
        command += ["--device", "cuda", "--repeats", "200", "--model", str(model)]
        done = subprocess.run(
            [*command, "--json", str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode == 2:  # it says what is not there, such as CUDA
            raise SkippedError(done.stderr.strip())
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-2000:])
        report = json.loads(target.read_text())
    (row,) = report["models"]
    if not row["provider"].startswith("CUDA"):
        raise RuntimeError(f"cfpose-bench was to run on CUDA, it ran on {row['provider']}")
    return {"report": report, "ms": {str(r["batch"]): r for r in row["throughput"]}}


def tensorrt(model: Path, module: str) -> Record:
    """Parse and build with TensorRT or TensorRT-RTX, then run where torch can hold the buffers."""
    trt = load(module)
    record: Record = {"version": trt.__version__}
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise RuntimeError("the parser refuses the graph: " + "; ".join(errors))
    width, height = size_of(model)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("crops", *((batch, height, width, 3) for batch in BATCHES))
    if config.add_optimization_profile(profile) < 0:
        raise RuntimeError("the profile for batches 1, 8 and 32 is refused")
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the build gives no engine")
    record |= {"layers": network.num_layers, "build_s": time.perf_counter() - start}
    record["plan_bytes"] = plan.nbytes
    try:
        record |= run_plan(trt, logger, plan, model)
    except SkippedError as reason:
        record["not_run"] = str(reason)
    return record


def run_plan(trt: Any, logger: Any, plan: Any, model: Path) -> Record:
    """Run a built engine on torch's buffers: keypoints against the CPU's, time without copies."""
    torch = load("torch")
    if not torch.cuda.is_available():
        raise SkippedError(f"torch {torch.__version__} sees no CUDA device")
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeError("the engine was built but cannot be loaded on this GPU")
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    crops = torch.from_numpy(sample_crops(size_of(model))).cuda()
    torch.cuda.synchronize()  # the crops are there before another stream reads them
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    outputs: dict[str, Any] = {}

    def enqueue(batch: int) -> None:
        context.set_input_shape("crops", tuple(crops[:batch].shape))
        context.set_tensor_address("crops", crops.data_ptr())
        for name in names:
            if name != "crops":
                shape = tuple(context.get_tensor_shape(name))
                if name not in outputs or outputs[name].shape != shape:
                    outputs[name] = torch.empty(shape, device="cuda")
                context.set_tensor_address(name, outputs[name].data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"the engine does not run at batch {batch}")

    def run(values: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        enqueue(len(values))
        torch.cuda.synchronize()
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    record: Record = {"ms": times(lambda n: lambda: enqueue(n), stream.synchronize)}
    try:
        load("onnxruntime")
    except SkippedError as reason:
        return {**record, "against_cpu": str(reason)}
    from cfpose_sdk.backends import open_backend

    with open_backend(model, device="cpu") as cpu:
        return {**record, "against_cpu": drift(run, cpu_run(cpu), crops.cpu().numpy())}


def size_of(model: Path) -> tuple[int, int]:
    """Crop width and height, from the ModelSpec that the file carries."""
    from cfpose_sdk.spec import SPEC_KEY, ModelSpec

    onnx = load("onnx")
    properties = onnx.load(str(model), load_external_data=False).metadata_props
    texts = [entry.value for entry in properties if entry.key == SPEC_KEY]
    if not texts:
        raise RuntimeError(f"{model} carries no {SPEC_KEY}: it is not a cfpose artifact")
    return ModelSpec.from_json(texts[0]).size_wh


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


def cpu_run(backend: Any) -> Run:
    """The reference: onnxruntime's CPU provider."""
    return lambda crops: dict(backend.run({"crops": crops}))


def drift(run: Run, reference: Run, crops: NDArray[np.uint8]) -> Record:
    """Keypoint distance in crop pixels over all joints, and over those of confidence >= 0.3."""
    mine, theirs = run(crops), reference(crops)
    distance = np.linalg.norm(mine["keypoints"] - theirs["keypoints"], axis=-1)
    sure = distance[theirs["confidence"] >= 0.3]
    record: Record = {"max_px": float(distance.max()), "mean_px": float(distance.mean())}
    record["joints"], record["sure_joints"] = int(distance.size), int(sure.size)
    if sure.size:
        record |= {"sure_max_px": float(sure.max()), "sure_p99_px": float(np.percentile(sure, 99))}
    return record


def times(
    call: Callable[[int], Callable[[], object]], synchronize: Callable[[], object] | None = None
) -> Record:
    """Timing by batch size, in milliseconds a call."""
    open_package("cfpose_bench", "benchmarks")
    latency = importlib.import_module("cfpose_bench.measurement")
    return {
        str(batch): asdict(
            latency.measure(call(batch), warmup=20, repeats=200, synchronize=synchronize)
        )
        for batch in BATCHES
    }

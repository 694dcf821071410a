"""W32 for the drift table: 32 people to overfit, and the averaged weights of a run as a graph.

python studies/w32.py people DATA/coco ROOT       # ROOT/people32.json and people.json
cfpose-train stage1 --recipe export/results/w32-overfit.toml --data-root ROOT --out runs/w32
python studies/w32.py graph runs/w32/state.pt w32-overfit.onnx   # any epoch will do
python studies/w32.py untrained w32-untrained.onnx
python studies/w32.py int8 w32-untrained.onnx w32-int8.onnx  # for times alone
cfpose-export drift w32-overfit.onnx --photos ROOT ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PEOPLE, MIN_JOINTS, MIN_AREA = 32, 14, 8000  # of COCO train, one a photo, no development photo
RECIPE = Path(__file__).resolve().parents[1] / "export" / "results" / "w32-overfit.toml"


def write_people(coco: Path, root: Path) -> None:
    """The first PEOPLE large, well-labelled people: for training, and their boxes for the proof."""
    record = json.loads((coco / "person_keypoints_train.json").read_text(encoding="utf-8"))
    chosen = {}
    for person in sorted(record["annotations"], key=lambda p: p["id"]):
        clear = person["num_keypoints"] >= MIN_JOINTS and person["area"] > MIN_AREA
        if clear and person["image_id"] % 10:
            chosen.setdefault(person["image_id"], person)
    people = list(chosen.values())[:PEOPLE]
    kept = {p["image_id"]: p for p in people}
    images = [image for image in record["images"] if image["id"] in kept]
    root.mkdir(parents=True, exist_ok=True)
    subset = {**record, "images": images, "annotations": people}
    (root / "people32.json").write_text(json.dumps(subset), encoding="utf-8")
    boxes = {}
    for image in images:
        x, y, w, h = kept[image["id"]]["bbox"]
        boxes[f"coco/images/train/{image['file_name']}"] = [[x, y, x + w, y + h]]
    (root / "people.json").write_text(json.dumps(boxes), encoding="utf-8")
    (root / "coco").unlink(missing_ok=True)
    (root / "coco").symlink_to(coco.resolve())


def write_graph(state: Path, output: Path) -> None:
    """The averaged weights of a stage-1 run, without a refiner, as a fused graph. Not proven."""
    import onnx
    import torch

    from cfpose_export.graph.trace import build_pose
    from cfpose_sdk.skeleton import COCO_17
    from cfpose_sdk.spec import ModelSpec
    from cfpose_training.config import load_recipe
    from cfpose_training.nets.fused import FusedPose
    from cfpose_training.nets.pose_net import PoseNet

    pose = load_recipe(RECIPE).pose
    spec = ModelSpec(pose.name, COCO_17, pose.size_wh, decode=pose.decode)
    network = PoseNet(pose.hrnet, spec)
    network.load_state_dict(torch.load(state, weights_only=True)["ema"])
    onnx.save_model(build_pose(FusedPose(network, spec)), output)


def write_untrained(output: Path) -> None:
    """The seeded W32 of gpu_w32.py, whose logits depend on the picture, without its refiner."""
    import onnx

    from cfpose_export.graph.trace import build_pose
    from cfpose_training.nets.fused import FusedPose
    from gpu_w32 import w32

    network, spec = w32()
    onnx.save_model(build_pose(FusedPose(network.pose, spec)), output)


def write_int8(source: Path, output: Path) -> None:
    """The graph in int8, its ranges from four crops of the examples: for times, not proven."""
    import onnx

    from cfpose_export.graph.rules import load_model, read_spec
    from cfpose_export.precision.int8 import calibrate, quantise
    from gpu_w32 import sample_crops

    model = load_model(source)
    ranges = calibrate(model, sample_crops(read_spec(model).size_wh)[:4])
    onnx.save_model(quantise(model, ranges), output)


def main() -> int:
    """Run one of the four commands."""
    command, *paths = sys.argv[1:]
    commands = {"people": write_people, "graph": write_graph, "untrained": write_untrained}
    commands["int8"] = write_int8
    commands[command](*map(Path, paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Several photos in one call, as COCO results. Run: python examples/03_batch.py [RESULTS.json]"""

import json
import sys
from pathlib import Path

from cfpose_sdk import PoseEstimator

folder = Path(__file__).parent / "photos"
photos = [folder / "street.jpg", folder / "basketball1.jpg"]
output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("poses.json")

with PoseEstimator() as estimator:
    results = estimator.predict_batch(photos)  # the crops of all photos share batches

rows = []
for photo, poses in zip(photos, results, strict=True):
    print(f"{photo.name}: {len(poses)} people")
    rows += poses.to_coco(image_id=photo.stem)

output.write_text(json.dumps(rows), encoding="utf-8")
print(f"{len(rows)} COCO results: {output}")

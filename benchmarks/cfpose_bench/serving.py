"""`python -m cfpose_bench.serving OPTIONS`: a cfpose artifact or MoveNet behind a pipe."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from cfpose_bench.candidates import Candidate, open_candidate, parse_name
from cfpose_bench.peers.serve import Record, UnreadableError, pin, serve
from cfpose_sdk.errors import ImageError


class ServedCandidate:
    """A candidate's answers as plain values."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.facts: Record = {
            "skeleton": dataclasses.asdict(candidate.skeleton),
            "precision": candidate.precision,
            "provider": candidate.provider,
            "size_wh": candidate.size_wh,
        }

    def predict(self, image: str, boxes: Any) -> Record:
        """Poses of the photo at a path."""
        try:
            poses = self.candidate.model.predict(image, boxes=boxes)
        except ImageError as error:
            raise UnreadableError(str(error)) from error
        return {
            "xy": poses.xy.tolist(),
            "confidence": poses.confidence.tolist(),
            "boxes": poses.boxes.tolist(),
            "box_scores": poses.box_scores.tolist(),
            "size_wh": list(poses.image_size_wh),
            "speed_ms": dict(poses.speed_ms),
        }


def main(options: Record) -> int:
    """Serve until the pipe is closed."""
    pin(options["cpus"], options["threads"])
    return serve(
        lambda: ServedCandidate(
            open_candidate(
                parse_name(options["model"]),
                find=options["find"],
                detector=options["detector"],
                device=options["device"],
                threads=options["threads"],
                flip_test=options["flip_test"],
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

"""What `/metrics` says: counters and times of the server, for Prometheus."""

from __future__ import annotations

from cfpose_sdk.results import Poses

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one server, in a registry of its own. Needs prometheus_client."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = registry = CollectorRegistry()
        self._answers = Counter(
            "cfpose_answers", "Answers to /predict by HTTP status", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "cfpose_answer_seconds", "From the first byte of a request to its answer",
            ["status"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._steps = Histogram(
            "cfpose_step_seconds", "Time of an image in each step", ["step"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "cfpose_batch_images", "Images that went through the model together",
            buckets=_IMAGES, registry=registry,
        )  # fmt: skip
        self._people = Counter("cfpose_people", "People found", registry=registry)
        self._waiting = Gauge("cfpose_waiting", "Requests that wait", registry=registry)
        self._ended = Gauge(
            "cfpose_decoders_ended", "Decoder processes that died or were killed", registry=registry
        )

    def answered(self, status: int, seconds: float) -> None:
        """One request to /predict was answered."""
        self._answers.labels(str(status)).inc()
        self._seconds.labels(str(status)).observe(seconds)

    def posed(self, poses: Poses, decode_s: float) -> None:
        """One image went through."""
        self._people.inc(len(poses))
        self._steps.labels("decode").observe(decode_s)
        for step in ("detect", "crop", "infer", "post"):
            self._steps.labels(step).observe(poses.speed_ms.get(step, 0.0) / 1000)

    def batched(self, images: int) -> None:
        """One batch goes to the model."""
        self._batches.observe(images)

    def text(self, waiting: int, ended: int) -> bytes:
        """All of them in Prometheus' text format."""
        from prometheus_client import generate_latest

        self._waiting.set(waiting)
        self._ended.set(ended)
        return bytes(generate_latest(self._registry))

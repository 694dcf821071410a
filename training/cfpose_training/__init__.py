"""Training: HRNet + SimCC students, IGP-GCN refiners, person finders."""

from cfpose_sdk.errors import require

require("torch", "lightning_fabric", "safetensors", "dacite", extra="train", why="cfpose_training")

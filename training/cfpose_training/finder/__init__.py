"""The finder, our own person detector: its boxes, data, stage and training."""

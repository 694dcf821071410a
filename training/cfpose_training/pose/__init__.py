"""The pose stages from a recipe to a checkpoint: training, evaluation, calibration."""

"""The networks: backbones, SimCC head, refiner and finder, with decoding; no file is read."""

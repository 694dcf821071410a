"""Poses of videos frame by frame, with prefetching, tracking and smoothing."""

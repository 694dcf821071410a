"""Videos frame by frame: prefetching, tracking and smoothing around the estimator."""

"""Many requests, many images: an HTTP server, and bulk runs in resumable shards."""

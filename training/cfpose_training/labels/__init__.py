"""`cfpose-train label`: keypoints by labellers, and how good they are."""

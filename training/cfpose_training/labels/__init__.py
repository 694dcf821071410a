"""`cfpose-train label`: keypoints from labelling models, and how good these labels are."""

"""How a foreign network's answer becomes keypoints: the nodes, and their references in NumPy."""

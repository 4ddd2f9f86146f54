"""UniFork: shared lower layers, and above them a branch for each task."""

"""Records of a run, and figures drawn from them."""

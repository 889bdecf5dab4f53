"""Measurements of this project beside its PyTorch peer, in one run: `make bench`."""

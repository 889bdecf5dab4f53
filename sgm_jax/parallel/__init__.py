"""Meshes, shardings and compilers: how the same program runs on one chip and on many."""

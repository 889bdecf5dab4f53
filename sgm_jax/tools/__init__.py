"""Errands: python -m sgm_jax.tools.NAME."""

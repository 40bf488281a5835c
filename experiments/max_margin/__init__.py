"""Experiments on Ji & Telgarsky 2019, maximum margin in deep linear networks."""

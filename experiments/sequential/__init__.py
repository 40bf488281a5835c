"""Experiments on Gidel et al. 2019, sequential learning in two-layer linear networks."""

"""Experiments on Radhakrishnan et al. 2020, alignment in deep linear networks."""

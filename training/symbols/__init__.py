"""Categorical features: counts of symbols, the network that mixes them (kernels and torch), and its prior's training.

May import `learn` and `network`.
"""

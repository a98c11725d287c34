"""A training run: its folder, learners, checkpoints and logs.

Imports: evaluation, losses and the packages below.
"""

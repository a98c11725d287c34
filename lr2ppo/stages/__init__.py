"""The training stages and their evaluation; each reads like its algorithm.

Imports: training, report and the packages below.
"""

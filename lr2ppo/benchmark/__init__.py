"""The speed of a training step, ours and the published implementation's.

Imports: stages and the packages below.
"""

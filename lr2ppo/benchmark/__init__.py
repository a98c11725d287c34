"""How fast a training step is, ours and the published way.

Imports: stages and the rooms below.
"""

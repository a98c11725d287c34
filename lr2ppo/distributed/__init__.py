"""Multiple processes: the process group, the launcher and stop signals.

Imports: config, errors.
"""

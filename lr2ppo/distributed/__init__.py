"""Several processes: their group, their launcher and the signals that stop them.

Imports: config, errors.
"""

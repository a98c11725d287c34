"""The settings of a run: the validated config of a stage (`schema`), read from YAML and overrides (`load`).

Imports: errors, files.
"""

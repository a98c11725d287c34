"""What a run can be told: the validated tree of a stage (`schema`), read from YAML and overrides (`load`).

Imports: errors, files.
"""

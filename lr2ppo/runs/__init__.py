"""The runs there are: one record a stage, how runs are found, locked and listed.

Imports: config, files, errors.
"""

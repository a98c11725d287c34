"""Existing runs: one record per stage, and how runs are found, locked and listed.

Imports: config, files, errors.
"""

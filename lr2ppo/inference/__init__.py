"""A trained model in use: ranking labels, exporting a model.

Imports: encoders, stages and the rooms below.
"""

"""Encoder weights in any of their layouts, read as the models that compute with them."""

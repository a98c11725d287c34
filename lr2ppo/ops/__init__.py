"""Faster computation on this machine: linear layers, packed text, memory.

Imports: only torch.
"""

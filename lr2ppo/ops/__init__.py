"""How this machine computes: linear layers, packed text, memory.

Imports: torch alone.
"""

"""Faster computation on this machine (linear layers, packed text, memory), and the gains and discounts of NDCG.

Imports: only torch.
"""

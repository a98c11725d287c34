"""Colours that mean the same in every picture."""

# By grade, from of no relevance to most relevant.
GRADE_COLOURS = {0: "#8a8f98", 1: "#c98a2d", 2: "#1b7f5c"}

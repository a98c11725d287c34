"""The commands, one light module each: the arguments it takes, and what it starts once they are read.

A module has a docstring, which its `--help` shows, an `EXAMPLE`, `add_arguments(parser)` and `run(arguments)`. Its body
imports what it needs once the arguments are checked, so that a mistake is answered at once.
"""

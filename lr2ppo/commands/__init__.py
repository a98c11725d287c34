"""The commands, one light module each: its arguments, and the library function that it calls.

A module has a docstring, which its `--help` shows, an `EXAMPLE`, `add_arguments(parser)` and `run(arguments)`. `run`
imports heavy modules only after it has checked the arguments, so that mistakes are reported at once.
"""

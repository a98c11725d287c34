"""The tests, in the rooms of the package."""

import os

# Read by torch when it is imported: waiting threads give way at once, else a busy machine slows the tests many times.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

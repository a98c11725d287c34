"""The demo: a web page where you drop frames, type labels and see how a run orders them."""

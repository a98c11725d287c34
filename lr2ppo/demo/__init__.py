"""The demo: a page on which a person drops frames, types labels and sees how a run orders them."""

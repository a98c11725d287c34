"""Convert a table of clips into a data folder."""

"""From a table of one's own clips to a data folder."""

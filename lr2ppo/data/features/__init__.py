"""The feature store: HDF5 files of encoded clips, read, written and checked."""

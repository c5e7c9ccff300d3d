"""The metrics of a search, one file each."""

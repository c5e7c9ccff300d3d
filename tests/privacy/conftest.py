"""Here so that pytest puts this folder on the path: `small_networks` is for the tests of the folders below, too."""

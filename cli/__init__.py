"""The command line: thin wrappers of the public functions."""

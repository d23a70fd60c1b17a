"""The bytes on disk: the training log and the audit document, with numpy and zarr alone, no torch."""

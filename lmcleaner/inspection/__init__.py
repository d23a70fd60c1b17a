"""What a log holds: a summary, its samples by text, and whether it is sound."""

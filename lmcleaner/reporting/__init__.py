"""Pages for people: what an audit found, and what a log holds."""

"""One backbone, three endings."""

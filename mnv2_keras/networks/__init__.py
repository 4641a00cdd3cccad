"""The public builders, and the conversion that chooses between them."""

"""The road for users: a photo in, what is on it out."""

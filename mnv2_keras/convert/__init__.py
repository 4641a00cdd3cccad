"""From a TF-Slim checkpoint file to a verified Keras model, and back."""

"""What is shipped with the package; installed as `mnv2_keras.pretrained`. See README.md, and `mnv2_keras.bundled`."""

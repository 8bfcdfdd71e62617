"""What is decided over layers: which sublayers go, how sparse each layer is."""

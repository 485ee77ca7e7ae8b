"""Files here and remote, the tensors in them, and the parts of a weight that ranks hold."""

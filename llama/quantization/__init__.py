"""Weight formats: packed in files, and the layers that multiply by them."""

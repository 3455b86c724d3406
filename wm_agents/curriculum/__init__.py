"""Tasks in order, trained in dreams, promoted by scores in the real environment."""

"""A list of tasks, each trained in dreams until its score in the real environment reaches a threshold."""

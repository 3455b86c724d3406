"""Episodes, the datasets they are stored in, and their collection."""

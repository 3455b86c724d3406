"""World models, the data they learn from, and the parts joined: learn, dream, judge."""

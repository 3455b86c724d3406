"""Training of dreams and controllers, in rounds or online."""

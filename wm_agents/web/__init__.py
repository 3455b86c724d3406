"""Dreams in a browser: play with the real environment beside it, export, and the dashboard of runs."""

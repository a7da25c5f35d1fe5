"""A plan as one page of HTML: every style and picture in it, nothing loaded, no script."""

"""The kernel table and its selection."""

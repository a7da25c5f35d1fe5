"""What verbs tell, as tables, plain data, a page or a trace."""

"""The verbs, a file each: what they take, and what they call."""

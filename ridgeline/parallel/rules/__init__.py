"""Rules between the specs of a job, each a generator of problems."""

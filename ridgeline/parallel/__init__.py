"""Mesh, stage maps, schedules, memory, time and the plan."""

"""The fastest layout of a job that fits, found without trying them all, and why its neighbours are not.

grid      which layouts there are
bounds    what a layout takes and holds at the least
explore   branch and bound between the two
around    the neighbours of the best, and what lacks when nothing fits
result    what comes out
"""

from ridgeline.parallel.search.grid import Grid as Grid
from ridgeline.parallel.search.grid import Point as Point
from ridgeline.parallel.search.grid import grid_of as grid_of
from ridgeline.parallel.search.grid import job_at as job_at
from ridgeline.parallel.search.grid import points as points
from ridgeline.parallel.search.result import Found as Found
from ridgeline.parallel.search.result import SearchResult as SearchResult
from ridgeline.parallel.search.search import search as search

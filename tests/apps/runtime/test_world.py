"""The ranks that were started."""

import pytest

from ridgeline.apps.runtime.world import World, check_world, world_of
from ridgeline.core.errors import SpecError
from ridgeline.models.jobs import preset


@pytest.mark.parametrize(
    ("environment", "messages"),
    [
        ({"RANK": "1"}, ["WORLD_SIZE='': must be a number in the environment; start the ranks with torchrun"]),
        ({"RANK": "x", "WORLD_SIZE": "-1"}, ["RANK='x': must be a number", "WORLD_SIZE='-1': must be a number"]),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "a"}, ["LOCAL_RANK='a': must be a number"]),
    ],
)
def test_half_an_environment_is_refused(environment, messages):
    """Each variable that is missing or no number is named."""
    with pytest.raises(SpecError) as caught:
        world_of(environment)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(message) for line, message in zip(lines, messages, strict=True))


def test_another_number_of_processes_is_one_clear_error():
    """Both numbers are said, and the two ways out."""
    job = preset("qwen2.5-7b")
    check_world(World(rank=3, world_size=8), job)
    with pytest.raises(
        SpecError, match=r"world_size=2: processes were started, the job has nodes=1 \* devices_per_node=8 = 8"
    ):
        check_world(World(rank=1, world_size=2), job)

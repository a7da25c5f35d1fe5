"""What tests of checkpoints share."""

from pathlib import Path

import pytest

from tests.checkpoint.hf_models import ALL_CONFIGS, random_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each family."""
    root = tmp_path_factory.mktemp("hf")
    for family in ALL_CONFIGS:
        random_model(family).save_pretrained(root / family, max_shard_size="100KB")
    return {family: root / family for family in ALL_CONFIGS}

"""Every recipe that comes with the package: it trains a step on features of any size, and its YAML explains itself."""

from importlib import resources

import pytest

from mil import checkpoint
from mil import config as configs
from mil.heads import heads
from mil.run import start_run
from tests.mil_helpers import make_world

RECIPES = configs.recipe_names()
# of every recipe a short run: two videos of each class, a few segments; what it publishes is read, not waited for
SHORT = ["train.epochs=null", "train.steps=2", "train.pairs=2", "train.batch=4", "data.count=8"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    modalities = ("rgb", "audio", "text")
    return make_world(tmp_path_factory.mktemp("recipes"), train=3, test=1, crops=2, modalities=modalities)


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_on_features_of_any_size_with_the_modalities_it_names(world, tmp_path, name):
    config = configs.load(name)
    parts = config.data.modalities or heads.get(config.head.name).modalities
    stores = [s.root for s in world.stores if parts or s.spec.modality == "rgb"]
    wanted = {"ped2": ["data.count=4"]}.get(name.rsplit("_", 1)[-1], [])
    run, summary = start_run(name, [*SHORT, *wanted], world.manifest, stores, tmp_path / "run", seed=1)
    assert summary["step"] == 2
    kept = checkpoint.load(run.checkpoint)
    used = {s.modality for s in kept.specs}
    assert used == ({"rgb"} if not parts or parts == ("visual",) else used)
    assert len(used) == max(len(parts), 1)


@pytest.mark.parametrize("name", RECIPES)
def test_its_first_line_says_what_it_is_and_its_about_is_one_line(name):
    text = (resources.files("mil") / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = configs.load(name)
    assert config.about
    assert "\n" not in config.about
    assert name in (config.head.name, f"motion_{config.head.name}") or name.startswith(f"{config.head.name}_")


@pytest.mark.parametrize("head", list(heads))
def test_every_head_has_a_recipe_for_small_datasets_and_one_of_its_own(head):
    own = [r for r in RECIPES if configs.head_of(r) == head]
    assert f"motion_{head}" in own
    assert len(own) >= 2

"""Recipes: every one loads; what is misspelt is named with a suggestion, before any work is done."""

from typing import Literal, get_args, get_origin

import pytest
import yaml

from data.registry import UnknownNameError
from mil import config as configs
from mil.config import Config, ConfigError


@pytest.mark.parametrize("name", configs.recipe_names())
def test_every_recipe_loads_and_survives_the_round_trip_through_a_run(name):
    config = configs.load(name)
    assert config.recipe == name
    assert config.about
    again = configs.validate(yaml.safe_load(config.to_yaml()), "config.yaml")
    assert again == config
    assert again.to_yaml() == config.to_yaml()


def test_there_are_recipes():
    assert {"ranking", "deepmil", "motion_ranking"} <= set(configs.recipe_names())


def test_the_config_of_a_run_holds_defaults_too():
    values = yaml.safe_load(configs.load("deepmil").to_yaml())
    assert values["train"]["clip_norm"] is None
    assert values["evaluate"] == {"protocol": "auto", "smooth": 1, "smoothing": "centred"}
    assert values["select"]["rule"] == "last"


def test_overrides_reach_every_depth_with_their_types():
    config = configs.load(
        "motion_ranking",
        [
            "train.optimizer.lr=3e-4",
            "head.topk=3",
            "head.hidden=[64, 16]",
            "train.milestones=[10, 20]",
            "train.ema=0.99",
            "data.sqrt=true",
            "data.clamp=null",
            "seed=5",
        ],
    )
    assert config.train.optimizer.lr == 3e-4
    assert config.train.optimizer.name == "adam"
    assert config.head.options["topk"] == 3
    assert list(config.head.options["hidden"]) == [64, 16]
    assert config.train.milestones == (10, 20)
    assert config.train.ema == 0.99
    assert config.data.sqrt is True
    assert config.data.clamp is None
    assert config.seed == 5
    assert configs.load("motion_ranking", ["seed=5"], seed=6).seed == 6


@pytest.mark.parametrize("text", ["8e-5", "8.0e-5", "0.00008", "8E-5"])
def test_numbers_are_numbers_however_yaml_writes_them(tmp_path, text):
    """YAML 1.1 takes 8e-5 for a string; a loss weight of '8e-5' would fail hours later, or never."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"head: {{name: ranking, smooth: {text}}}\ntrain:\n  optimizer: {{lr: {text}}}\n")
    config = configs.load(str(file))
    assert config.head.options["smooth"] == 8e-5
    assert config.train.optimizer.lr == 8e-5
    assert config.recipe == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=5"], r"train\.stepz: no such key\. Did you mean 'steps'"),
        (
            ["train.optimizer.weight_decy=1"],
            r"train\.optimizer\.weight_decy: no such key\. Did you mean 'weight_decay'",
        ),
        (["trian.steps=5"], r"trian: no such key\. Did you mean 'train'"),
        (["head.dropuot=0.5"], r"head 'ranking' has no option 'dropuot'\. Did you mean 'dropout'"),
        (["head.dim=5"], r"head 'ranking' has no option 'dim'"),
        (["train.steps=0"], r"train\.steps: Input should be greater than or equal to 1"),
        (["train.steps=many"], r"train\.steps: Input should be a valid integer"),
        (["data.resample=segment"], r"data\.resample: Input should be 'segments'"),
        (["train.optimizer.lr=-1"], r"train\.optimizer\.lr: Input should be greater than 0"),
        (["evaluate.smooth=4"], r"evaluate\.smooth must be odd.*got 4"),
        (["train.steps"], r"--set takes key=value"),
        (["=5"], r"--set takes key=value"),
        (["train.steps.more=5"], r"'steps' is a value and has no keys below it"),
        (["head.hidden=[1, 2"], r"not a YAML value"),
    ],
)
def test_faults_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configs.load("motion_ranking", overrides)


@pytest.mark.parametrize("value", ["nan", ".nan", "inf", ".inf"])
def test_a_learning_rate_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr"):
        configs.load("motion_ranking", [f"train.optimizer.lr={value}"])


@pytest.mark.parametrize(
    ("override", "option"),
    [("head.dropout=much", "dropout"), ("head.hidden=5", "hidden"), ("head.topk=1.5", "topk"), ("head.l2=[1]", "l2")],
)
def test_an_option_of_the_wrong_type_is_refused_before_the_head_is_made(override, option):
    with pytest.raises(ConfigError, match=rf"head\.{option}: "):
        configs.load("motion_ranking", [override])


def test_an_integer_written_with_an_exponent_is_an_integer():
    assert repr(configs.load("motion_ranking", ["head.topk=1e1"]).head.options["topk"]) == "10"


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"2 faults:\n.*data\.count.*\n.*train\.pairs"):
        configs.load("motion_ranking", ["data.count=0", "train.pairs=0"])


def test_misspelt_names_get_suggestions(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no recipe called 'rankin'\. Did you mean 'ranking'"):
        configs.load("rankin")
    with pytest.raises(UnknownNameError, match=r"no head called 'rankng'\. Did you mean 'ranking'"):
        configs.load("ranking", ["head.name=rankng"])
    with pytest.raises(ConfigError, match=r"no recipe file .*missing\.yaml"):
        configs.load(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("head: {name: [", "is not YAML"),
        ("seed: 1\n", "head: Field required"),
        ("head: {dropout: 0.5}\n", r"head\.name: Field required"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        configs.load(str(file))


def test_a_config_cannot_be_changed_afterwards():
    config = configs.load("ranking")
    assert isinstance(config, Config)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 1


# -- recipes on top of recipes ----------------------------------------------------------------------------------------

BASE = """
about: the one below
head: {name: ranking, smooth: 0.5, topk: 2}
data: {count: 16, scale: l2}
train: {steps: 7, optimizer: {name: adagrad, lr: 0.5, eps: 0.25, groups: {fc1: {lr: 0.125}}}}
"""


@pytest.fixture
def layered(tmp_path):
    """layered(text, ...) -> the config of a file that builds on BASE."""
    (tmp_path / "below.yaml").write_text(BASE)

    def load(text, *overrides):
        (tmp_path / "above.yaml").write_text(f"base: below.yaml\n{text}")
        return configs.load(str(tmp_path / "above.yaml"), list(overrides))

    return load


def test_a_base_is_replaced_key_by_key(layered):
    config = layered("head: {topk: 3}\ntrain: {optimizer: {lr: 0.75, groups: {fc2: {lr: 2}}}}\nabout: mine\n")
    assert (config.recipe, config.about) == ("above", "mine")
    assert config.head.options == {"smooth": 0.5, "topk": 3}
    assert (config.data.count, config.data.scale, config.train.steps) == (16, "l2", 7)
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.eps) == ("adagrad", 0.75, 0.25)
    assert {name: group.lr for name, group in optimizer.groups.items()} == {"fc1": 0.125, "fc2": 2}
    assert config.train.pairs == 30  # in neither: the default
    assert layered("").model_copy(update={"recipe": "below"}) == layered("base: below.yaml\n").model_copy(
        update={"recipe": "below"}
    )


def test_a_head_or_an_optimizer_of_another_name_takes_nothing_over(layered):
    config = layered("head: {name: deepmil, sparse: 0.25}\ntrain: {optimizer: {name: sgd, lr: 0.75}}\n")
    assert config.head.options == {"sparse": 0.25}
    assert config.train.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.75,
        "weight_decay": 0,
        "eps": None,
        "momentum": 0,
        "groups": {},
    }
    assert config.train.steps == 7
    # of the same name, said again: the rest stays
    config = layered("head: {name: ranking, sparse: 0.25}\ntrain: {optimizer: {name: adagrad, lr: 0.75}}\n")
    assert config.head.options == {"smooth": 0.5, "topk": 2, "sparse": 0.25}
    assert config.train.optimizer.eps == 0.25


def test_overrides_come_last_and_may_name_groups(layered):
    config = layered("head: {topk: 3}\n", "head.topk=4", "train.optimizer.groups.fc1.weight_decay=0.5", "data.count=9")
    assert (config.head.options["topk"], config.data.count) == (4, 9)
    assert config.train.optimizer.groups["fc1"].model_dump() == {"lr": 0.125, "weight_decay": 0.5}
    config = layered("", "train.optimizer.groups={fc1.weight: {lr: 1e-3}}")
    assert {name: group.lr for name, group in config.train.optimizer.groups.items()} == {"fc1.weight": 1e-3}


def test_a_base_lies_beside_its_file_and_not_where_one_stands(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    (folder / "below.yaml").write_text("base: ranking\nhead: {topk: 2}\nseed: 4\n")
    (folder / "deeper" / "above.yaml").write_text("base: ../below.yaml\nhead: {smooth: 0.25}\n")
    monkeypatch.chdir(tmp_path)
    config = configs.load("mine/deeper/above.yaml")
    assert (config.head.options["topk"], config.head.options["smooth"], config.seed) == (2, 0.25, 4)
    assert config.head.options["l2"] == 0.001  # of the recipe that comes with the package
    assert config.recipe == "above"


def test_the_config_of_a_run_as_a_base_gives_its_values_but_not_its_name(tmp_path):
    (tmp_path / "config.yaml").write_text(configs.load("ranking", ["head.topk=5"]).to_yaml())
    (tmp_path / "mine.yaml").write_text("base: config.yaml\nseed: 9\n")
    config = configs.load(str(tmp_path / "mine.yaml"))
    assert (config.recipe, config.seed, config.head.options["topk"]) == ("mine", 9, 5)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"a": "a.yaml"}, r"a builds on itself: .*a\.yaml -> .*a\.yaml$"),
        ({"a": "./b.yaml", "b": "./a.yaml"}, r"b builds on itself: .*a\.yaml -> .*b\.yaml -> .*a\.yaml$"),
        ({"a": "b.yaml"}, r"no recipe file .*b\.yaml"),
        ({"a": "rankin"}, r"no recipe called 'rankin'\. Did you mean 'ranking'"),
        ({"a": "7"}, r"no recipe called '7"),
    ],
    ids=["itself", "a circle", "no file", "no name", "a number"],
)
def test_a_base_that_cannot_be_is_refused(tmp_path, monkeypatch, bases, message):
    monkeypatch.chdir(tmp_path)
    for name, base in bases.items():
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}\nhead: {{name: ranking}}\n")
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        configs.load("a.yaml")


def test_a_fault_of_a_base_is_a_fault_of_the_recipe(layered):
    with pytest.raises(ConfigError, match=r"above has 1 faults:\n.*train\.stepz: no such key"):
        layered("train: {stepz: 3}\n")
    with pytest.raises(ConfigError, match="head 'deepmil' has no option 'topk'"):
        layered("head: {name: deepmil, topk: 3}\n")
    with pytest.raises(ConfigError, match=r"base: no such key"):
        layered("", "base=ranking")


# -- epochs, and what is new ------------------------------------------------------------------------------------------


def test_steps_on_top_of_epochs_are_refused_for_they_would_change_nothing(tmp_path):
    (tmp_path / "below.yaml").write_text("head: {name: ranking}\ntrain: {epochs: 5, milestones: [3]}\n")
    below, above = str(tmp_path / "below.yaml"), tmp_path / "above.yaml"
    message = r"train\.steps is not used, the recipe counts epochs \(train\.epochs=5\); set train\.epochs, or"
    with pytest.raises(ConfigError, match=f"below: {message}"):
        configs.load(below, ["train.steps=10"])
    above.write_text("base: below.yaml\ntrain: {steps: 10}\n")
    with pytest.raises(ConfigError, match=f"above: {message}"):
        configs.load(str(above))
    above.write_text("base: below.yaml\ntrain: {steps: 10, epochs: null}\n")
    assert (configs.load(str(above)).train.steps, configs.load(str(above)).train.epochs) == (10, None)
    for order in (["train.steps=10", "train.epochs=null"], ["train.epochs=null", "train.steps=10"]):
        assert configs.load(below, order).train.steps == 10
    assert configs.load(below, ["train.epochs=2"]).train.epochs == 2
    # what a run wrote down holds both, and is read back as it is
    whole = tmp_path / "config.yaml"
    whole.write_text(configs.load(below).to_yaml())
    assert configs.load(str(whole)).train.epochs == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=0"], r"train\.epochs: Input should be greater than or equal to 1"),
        (["train.epochs=2.5"], r"train\.epochs: Input should be a valid integer"),
        (["train.t_max=0"], r"train\.t_max: Input should be greater than or equal to 1"),
        (["train.batch=0"], r"train\.batch: Input should be greater"),
        (["train.sampler=pairs"], r"train\.sampler: Input should be 'balanced', 'passes' or 'mixed'"),
        (["train.samples=crop"], r"train\.samples: Input should be 'videos' or 'crops'"),
        (["train.shuffle=perhaps"], r"train\.shuffle: Input should be a valid boolean"),
        (["train.optimizer.name=lion"], r"train\.optimizer\.name: Input should be 'adagrad'.*'radam'"),
        (["train.optimizer.groups={fc1: {lrr: 1}}"], r"groups\.fc1\.lrr: no such key\. Did you mean 'lr'"),
        (["train.optimizer.groups={fc1: {lr: -1}}"], r"groups\.fc1\.lr: Input should be greater than or equal to 0"),
        (["train.optimizer.groups={fc1: 0.5}"], r"groups\.fc1: Input should be a valid dictionary"),
        (["train.optimizer.groups=[fc1]"], r"train\.optimizer\.groups: Input should be a valid dictionary"),
        (["data.resample=randomly"], r"data\.resample: .*'random'"),
        (["evaluate.smoothing=before"], r"evaluate\.smoothing: Input should be 'centred', 'ahead' or 'blocks'"),
        (["evaluate.smoothing=ahead", "evaluate.smooth=0"], r"evaluate\.smooth: Input should be greater"),
        (["evaluate.smooth=4", "evaluate.smoothing=centred"], r"must be odd.*got 4"),
    ],
)
def test_faults_of_younger_keys_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configs.load("ranking", overrides)


@pytest.mark.parametrize("smoothing", ["ahead", "blocks"])
def test_only_around_a_clip_the_number_must_be_odd(smoothing):
    config = configs.load("ranking", ["evaluate.smooth=8", f"evaluate.smoothing={smoothing}"])
    assert (config.evaluate.smooth, config.evaluate.smoothing) == (8, smoothing)


def test_every_recipe_says_of_itself_what_it_is_and_is_found_by_its_head():
    found = {name: configs.load(name) for name in configs.recipe_names()}
    assert {name: configs.head_of(name) for name in found} == {name: c.head.name for name, c in found.items()}
    abouts = [config.about for config in found.values()]
    twice = {about for about in abouts if abouts.count(about) > 1}
    assert not twice, "a recipe on top of another says what it is itself"


def test_patterns_find_recipes():
    assert configs.matching("ranking") == ["ranking"]
    assert configs.matching("mine/*.yaml") == ["mine/*.yaml"]
    assert configs.matching("motion_rank?ng") == ["motion_ranking"]
    with pytest.raises(UnknownNameError, match=r"no recipe matches 'rankin\*x'"):
        configs.matching("rankin*x")


def choices(part=configs.Config, above=""):
    """(key, choice) of every value that is one of a few names."""
    for name, field in part.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from choices(field.annotation, f"{above}{name}.")
        elif get_origin(field.annotation) is Literal:
            yield from ((f"{above}{name}", choice) for choice in get_args(field.annotation))


@pytest.mark.parametrize(("key", "choice"), list(choices()))
def test_every_name_means_itself_on_the_command_line_and_in_a_file(key, choice):
    """YAML reads no, off and null as something else than a name."""
    value = configs.load("motion_ranking", [f"{key}={choice}"]).model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    assert value == choice

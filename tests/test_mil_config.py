"""Recipes: every one loads; what is misspelt is named with a suggestion, before any work is done."""

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

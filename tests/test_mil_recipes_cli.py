"""`wsvad recipes`: a copy of a recipe loads to the same values and keeps the comments."""

import json
from importlib import resources

import pytest
import yaml

from data.registry import UnknownNameError
from mil import config as configs
from mil.heads import heads
from mil.recipe_copy import flat
from tests.mil_helpers import call_wsvad as wsvad

RECIPES = configs.recipe_names()


def shipped(name: str) -> str:
    return (resources.files("mil") / "recipes" / f"{name}.yaml").read_text()


def values_of(recipe: str) -> dict:
    values, _ = configs.read(recipe)
    values.pop("recipe", None)
    return values


@pytest.mark.parametrize("head", [*heads])
def test_a_copy_of_every_recipe_loads_equal_and_has_every_comment_of_the_recipe_itself(head, tmp_path):
    for name in (name for name in RECIPES if configs.head_of(name) == head):
        text = flat(name)
        assert "base" not in yaml.safe_load(text)
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        assert values_of(str(path)) == values_of(name)
        comments = [line[line.index("# ") :] for line in shipped(name).splitlines() if "# " in line]
        assert [c for c in comments if c not in text] == []
    config = configs.load(str(path))  # of the last, all the way
    assert config == configs.load(name)


def test_a_value_has_the_comment_of_the_file_that_sets_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "low.yaml").write_text(
        "# low: lowest\n# second line\nhead:   # which\n  name: ranking\n  hidden: [8, 4]   # widths: of two\n"
        "                   # layers\n  # about the next\n  dropout: 0.5  # low's\n"
        "train:\n  steps: 3\n  optimizer: {name: adam, lr: 1e-4}   # low's optimizer\n# at the end\n"
    )
    (tmp_path / "mid.yaml").write_text("# mid\nbase: low.yaml\nhead: {dropout: 0.25, topk: 2}   # mid's head\n")
    (tmp_path / "top.yaml").write_text(
        '# top\nabout: "a # b"   # said\nbase: ./mid.yaml\ntrain: {optimizer: {weight_decay: 1e-5}, milestones: []}\n'
        "head:\n  topk: 3\n"
    )
    assert flat("top.yaml").split("\n", 1)[1] == (
        "# top\n# It took values of mid:\n# mid\n# It took values of low:\n# low: lowest\n# second line\n"
        "head:\n  name: ranking\n  hidden: [8, 4]   # widths: of two\n                   # layers\n"
        "  dropout: 0.25\n  topk: 3\n"
        "train:\n  steps: 3\n  optimizer:\n    name: adam\n    lr: 1e-4\n    weight_decay: 1e-5\n  milestones: []\n"
        'about: "a # b"   # said\n'
    )
    (tmp_path / "copy.yaml").write_text(flat("top.yaml"))
    assert values_of("copy.yaml") == values_of("top.yaml")
    (tmp_path / "top.yaml").write_text("base: low.yaml\nhead: {name: deepmil, dropout: 0.1}\n")
    assert "which" not in flat("top.yaml"), "of a head of another name nothing is kept"


@pytest.mark.parametrize(
    "text",
    [
        "head: &h {name: ranking, topk: 2}\ntrain: {optimizer: {groups: {b: &g {lr: 0.5}, w: *g, 1: {<<: *g}}}}\n",
        "head:\n    name: ranking\n    hidden:\n    - 8\n    - 4   # four\nabout: >-\n    folded\n    text\n",
        "head:\n name: ranking\n prompts: of two\n  lines   # its own\nabout: 'a # b'\n",
        "head: {\n  name: ranking,  # a name\n  topk: 2,\n}\nabout: größer ''  # größer\n",
        '"head": {"name": "ranking", "topk": 2}',
        "about: &g x\nhead: {name: ranking, prompts: *g}  # an alias of what stands outside\n",
    ],
)
def test_a_copy_is_right_however_a_file_is_written(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "copy.yaml").write_text(flat(str(tmp_path / "mine.yaml")))
    assert values_of(str(tmp_path / "copy.yaml")) == values_of(str(tmp_path / "mine.yaml"))


def test_comments_that_cannot_be_copied_are_not_dropped_in_silence(tmp_path, caplog):
    mine = tmp_path / "mine.yaml"
    mine.write_text("# top\nabout: &a 'x'  # said\nhead:\n  name: ranking  # which\n  prompts: *a  # the same\n")
    assert flat(str(mine)).split("\n", 1)[1] == "# top\nabout: x\nhead:\n  name: ranking\n  prompts: x\n"
    assert f"the way {mine} is written does not let the comments" in caplog.text
    caplog.clear()
    mine.write_text("head:\n  name: ranking\n  1: 2  # which\n")
    assert "1: 2  # which" in flat(str(mine))
    assert not caplog.text


def test_cp_writes_a_file_that_trains_and_never_overwrites(tmp_path):
    out = tmp_path / "mine.yaml"
    result = wsvad("recipes", "cp", "pel4vad_folder", out)
    assert (result.exit_code, f"wsvad train {out}" in result.stdout) == (0, True)
    copied, original = configs.load(str(out)), configs.load("pel4vad_folder")
    assert copied.recipe == "mine", "so that a run of it is resumed by its own name"
    assert copied.model_copy(update={"recipe": original.recipe}) == original
    assert "kl: 9.0               # code\n" in out.read_text(), "from the recipe below"
    before = out.read_bytes()
    for arguments, message in (
        (("ranking", out), "exists and is never overwritten"),
        (("ranking", tmp_path / "mine"), "a recipe's file ends in .yaml"),
        (("ranking", tmp_path / "no" / "mine.yaml"), "make it first"),
        (("rankin", tmp_path / "new.yaml"), "no recipe called 'rankin'. Did you mean 'ranking'"),
    ):
        result = wsvad("recipes", "cp", *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_show_prints_the_file_or_every_value(tmp_path):
    assert wsvad("recipes", "show", "hlnet_folder").stdout == shipped("hlnet_folder")
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: rtfm_sh\n")
    assert wsvad("recipes", "show", mine).stdout == "base: rtfm_sh\n"
    text = wsvad("recipes", "show", "hlnet_folder", "--resolved").stdout
    values = yaml.safe_load(text)
    assert values["train"]["ema"] is None, "a default of the schema"
    assert values["head"]["graph"] == 32, "of the recipe below"
    assert yaml.safe_load(wsvad("recipes", "show", "motion_hlnet", "--resolved").stdout)["head"]["graph"] == 32
    config = configs.validate(values, "resolved")
    assert config.model_copy(update={"head": None}) == configs.load("hlnet_folder").model_copy(update={"head": None})
    assert config.head.options.items() >= configs.load("hlnet_folder").head.options.items()
    result = wsvad("recipes", "show", "hlnt_xd")
    assert (result.exit_code, "Did you mean 'hlnet_xd'" in result.stderr) == (2, True)
    assert len(result.stderr) < 250, "a hundred names are no help"


def test_ls_picks_by_head_and_dataset():
    rows = json.loads(wsvad("recipes", "ls", "--head", "rtfm", "--json").stdout)
    assert [(r["name"], r["dataset"], r["published"]) for r in rows] == [
        ("motion_rtfm", "any", False),
        ("rtfm_folder", "folder", False),
        ("rtfm_sh", "shanghaitech", True),
        ("rtfm_ucf", "ucf_crime", True),
        ("rtfm_xd", "xd_violence", True),
    ]
    lines = wsvad("recipes", "ls", "--dataset", "xd_violence").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [f"{h}_xd" for h in heads]
    marked = [line.split()[0] for line in lines if line.split()[1] == "*"]
    assert marked == [f"{h}_xd" for h in heads if f"{h}_xd" in configs.published(h)]
    assert {configs.dataset_of(n) for n in ("ranking", "deepmil", "tevad_ped2")} == {"ucf_crime", "ucsd_ped"}
    for option, name in (("--head", "rtf"), ("--dataset", "ucf_crim")):
        result = wsvad("recipes", "ls", option, name)
        assert (result.exit_code, "Did you mean" in result.stderr) == (2, True)
    with pytest.raises(UnknownNameError):
        flat("rankin")

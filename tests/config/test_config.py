"""Reading a run's configuration: YAML files, overrides and error messages."""

import re
from inspect import signature
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lr2ppo.config.load import config_leaves, dump_config, load_config
from lr2ppo.config.schema import CONFIGS, LossConfig, PreferenceLoss, RankingLoss, Section
from lr2ppo.errors import UserError
from lr2ppo.losses import PREFERENCE_LOSSES, RANKING_LOSSES
from tests.conftest import REPOSITORY

MINI = REPOSITORY / "configs" / "mini"
STAGE_FILES = sorted(MINI.glob("*.yaml"))

stage_files = pytest.mark.parametrize("path", STAGE_FILES, ids=lambda path: path.stem)


def read_tree(stage: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((MINI / f"{stage}.yaml").read_text(encoding="utf-8"))
    return tree


def write_tree(folder: Path, tree: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def load(stage: str, *overrides: str) -> Any:
    return load_config(MINI / f"{stage}.yaml", stage, overrides)


# A comparison of methods is in no preset.
IN_PRESETS = [stage for stage in CONFIGS if stage != "compare"]


def message_of(path: Path, stage: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, stage, overrides)
    return str(caught.value)


@pytest.mark.parametrize("preset", ["mini", "lrmovienet", "lrmovienet_pooled"])
def test_every_preset_has_a_file_for_each_stage(preset: str) -> None:
    paths = sorted((MINI.parent / preset).glob("*.yaml"))
    assert {path.stem for path in paths} == set(IN_PRESETS)
    assert all(load_config(path, path.stem).preset == preset for path in paths)


# The published settings of each stage; batch sizes are per process, of four.
PUBLISHED = {
    "pointwise": {
        "seed": 7, "data.frames": 16, "data.train": "first_stage_data.json", "model.head": "flatten",
        "model.attention": "published", "model.width": 768, "model.heads": 8, "model.dropout": 0.1,
        "model.text_tokens": 196, "train.epochs": 15, "train.clips_per_batch": 2, "train.max_labels": 20,
        "train.learning_rate": 2e-5, "train.weight_decay": 0.01, "train.warmup": 0.1, "train.evaluate_every": 150,
        "loss.beta": 0.3,
    },
    "reward": {
        "seed": 7, "data.frames": 16, "model.head": "flatten", "model.attention": "published", "model.width": 768,
        "data.train": "first_second_data_pair/first_second_data_pair_10pct.json", "train.epochs": 15,
        "train.learning_rate": 2e-5, "train.weight_decay": 0.01, "train.warmup": 0.1, "train.evaluate_every": 100,
        "loss.margin": 1.0,
    },
    "ppo": {
        "seed": 7, "data.frames": 16, "data.train": "first_second_stage_data.json", "train.epochs": 29,
        "train.batches_per_rollout": 200, "train.passes": 1, "train.evaluate_every": 1,
        "train.actor.learning_rate": 1e-3, "train.actor.weight_decay": 0.01, "train.critic.learning_rate": 1e-3,
        "loss.weighting": "batch", "loss.margin": 0.01, "loss.reverse_below": -0.1, "loss.kl_weight": 0.001,
        "loss.entropy_weight": 0.001, "loss.value_clip": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", PUBLISHED)
def test_the_lrmovienet_preset_has_the_published_settings(stage: str) -> None:
    config = load_config(MINI.parent / "lrmovienet" / f"{stage}.yaml", stage)
    for key, wanted in PUBLISHED[stage].items():
        assert attrgetter(key)(config) == wanted, key


def test_the_lrmovienet_presets_batches_hold_the_published_numbers_of_pairs() -> None:
    reward = load_config(MINI.parent / "lrmovienet" / "reward.yaml", "reward").train
    ppo = load_config(MINI.parent / "lrmovienet" / "ppo.yaml", "ppo").train
    assert reward.clips_per_batch * reward.pairs_per_clip == 60
    assert ppo.clips_per_batch * ppo.pairs_per_clip == 24
    assert ppo.visits_per_epoch * ppo.pairs_per_clip == 80
    batches = -(-3413 * ppo.visits_per_epoch // (4 * ppo.clips_per_batch)) * ppo.epochs
    assert batches // ppo.batches_per_rollout == 412


def test_the_pooled_preset_differs_only_by_its_model_in_stage_3_and_in_the_choice_of_the_step() -> None:
    for stage in set(IN_PRESETS) - {"ppo"}:
        published, pooled = (
            load_config(MINI.parent / preset / f"{stage}.yaml", stage).model_dump(exclude={"preset", "model"})
            for preset in ("lrmovienet", "lrmovienet_pooled")
        )
        if stage in ("finetune", "distill"):
            assert (published["train"].pop("standard_errors"), pooled["train"].pop("standard_errors")) == (0, -1)
        assert pooled == published


@stage_files
def test_each_mini_file_loads_for_its_stage(path: Path) -> None:
    config = load_config(path, path.stem)
    assert isinstance(config, CONFIGS[path.stem])
    assert config.stage == path.stem


@stage_files
def test_the_preset_is_the_files_folder_unless_given(path: Path, tmp_path: Path) -> None:
    assert load_config(path, path.stem).preset == "mini"
    (tmp_path / "mine").mkdir()
    copy = write_tree(tmp_path / "mine", read_tree(path.stem))
    assert load_config(copy, path.stem).preset == "mine"
    assert load_config(copy, path.stem, ["preset=other"]).preset == "other"


@stage_files
def test_what_is_dumped_loads_as_the_same_config(path: Path, tmp_path: Path) -> None:
    config = load_config(path, path.stem, ["name=a 'quoted' naïve name", "seed=11"])
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped, path.stem) == config
    assert "naïve name" in dumped.read_text(encoding="utf-8")


@settings(deadline=None, max_examples=40)
@given(
    rate=st.floats(0, 1e3),
    name=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
    features=st.lists(st.sampled_from(["a.h5", "b*.h5", "c d.h5"]), min_size=1),
)
def test_any_value_survives_dumping_and_loading(
    tmp_path_factory: pytest.TempPathFactory, rate: float, name: str | None, features: list[str]
) -> None:
    config = load("pointwise")
    config = config.model_copy(
        update={
            "name": name,
            "train": config.train.model_copy(update={"learning_rate": rate}),
            "data": config.data.model_copy(update={"features": tuple(features)}),
        }
    )
    dumped = tmp_path_factory.getbasetemp() / "dumped.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped, "pointwise") == config


def test_a_config_never_changes_once_read() -> None:
    config = load("pointwise")
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 1
    assert isinstance(config, Section)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        ("train.learning_rate=0", "train.learning_rate", 0.0),
        ("train.learning_rate=.5E-3", "train.learning_rate", 5e-4),
        ("seed=010", "seed", 10),
        ("seed=08", "seed", 8),
        ("seed=0x1F", "seed", 31),
        ("data.root=/some/where", "data.root", Path("/some/where")),
        ("data.root=set #2", "data.root", Path("set #2")),
        ("data.root=010", "data.root", Path("010")),
        ("logs=a: b", "logs", Path("a: b")),
        ("data.features=one.h5", "data.features", ("one.h5",)),
        ("data.features=one #2.h5", "data.features", ("one #2.h5",)),
        ("data.features=[one.h5, 'two*.h5']", "data.features", ("one.h5", "two*.h5")),
        ("name=a=b", "name", "a=b"),
        ("model.text_width=null", "model.text_width", None),
        ("loss={beta: 0.5}", "loss.beta", 0.5),
    ],
)
def test_an_override_is_read_as_yaml(override: str, path: str, expected: object) -> None:
    found = load("pointwise", override)
    for key in path.split("."):
        found = getattr(found, key)
    assert found == expected
    assert type(found) is type(expected) or isinstance(expected, Path)


def test_the_last_of_two_overrides_holds_and_others_stay() -> None:
    config = load("ppo", "train.actor.warmup=0.5", "train.actor.warmup=0.25")
    assert config.train.actor.warmup == 0.25
    assert config.train.critic == load("ppo").train.critic


@pytest.mark.parametrize("override", ["seed", "=3", "", "seed: 3"])
def test_an_override_that_is_no_key_and_value_is_shown_with_an_example(override: str) -> None:
    message = message_of(MINI / "pointwise.yaml", "pointwise", override)
    assert repr(override) in message
    assert "train.epochs=3" in message


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("train.epoch=3", "train.epochs"),
        ("epochs=3", "train.epochs"),
        ("trian.epochs=3", "train.epochs"),
        ("data.feature=a.h5", "data.features"),
        ("sed=3", "seed"),
    ],
)
def test_an_unknown_override_is_refused_naming_the_nearest_key(override: str, suggestion: str) -> None:
    message = message_of(MINI / "pointwise.yaml", "pointwise", override)
    assert f"unknown key {override.partition('=')[0]!r}; did you mean {suggestion}?" in message


def test_an_unknown_override_like_no_key_lists_the_known_ones() -> None:
    message = message_of(MINI / "pointwise.yaml", "pointwise", "xyzzy=1")
    assert all(key in message for key in ("seed", "train.epochs", "loss.beta", "data.root"))


def test_an_override_below_a_value_is_refused() -> None:
    assert "unknown key 'seed.deep'" in message_of(MINI / "pointwise.yaml", "pointwise", "seed.deep=1")


def test_an_override_into_a_section_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_tree(tmp_path, read_tree("pointwise") | {"train": None})
    assert "wanted a section of keys" in message_of(path, "pointwise", "train.epochs=3")


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert "train.epochs=[3: the value is not YAML" in message_of(
        MINI / "pointwise.yaml", "pointwise", "train.epochs=[3"
    )


@pytest.mark.parametrize(
    ("section", "key", "suggestion"),
    [(None, "sead", "seed"), ("train", "epoch", "train.epochs"), ("data", "frame_ordr", "data.frame_order")],
)
def test_an_unknown_key_in_a_file_is_refused_naming_the_nearest_key(
    tmp_path: Path, section: str | None, key: str, suggestion: str
) -> None:
    tree = read_tree("pointwise")
    (tree if section is None else tree[section])[key] = 1
    full = key if section is None else f"{section}.{key}"
    message = message_of(write_tree(tmp_path, tree), "pointwise")
    assert f"{full}: unknown key; did you mean {suggestion}?" in message


def test_all_faults_of_a_file_are_in_one_message(tmp_path: Path) -> None:
    tree = read_tree("pointwise")
    tree["train"]["epochs"] = 0
    tree["train"]["warmup"] = 1.5
    tree["model"]["head"] = "round"
    tree["sed"] = 3
    del tree["data"]["root"]
    path = write_tree(tmp_path, tree)
    message = message_of(path, "pointwise", "loss.beta=-1")
    assert str(path) in message
    for expected in (
        "train.epochs: found 0",
        "train.warmup: found 1.5",
        "model.head: found 'round'",
        "sed: unknown key; did you mean seed?",
        "data.root: is missing",
        "loss.beta: found -1",
    ):
        assert expected in message


@pytest.mark.parametrize("key", ["train", "data", "seed", "device", "loss.beta"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    tree = read_tree("pointwise")
    *sections, last = key.split(".")
    place = tree
    for section in sections:
        place = place[section]
    del place[last]
    assert f"{key}: is missing" in message_of(write_tree(tmp_path, tree), "pointwise")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=2.5", "train.epochs: found 2.5"),
        ("train.epochs=many", "train.epochs: found 'many'"),
        ("train.epochs=", "train.epochs: found None"),
        ("train=3", "train: found 3"),
        ("data.features=[]", "data.features: found []"),
        ("model.dropout=1", "model.dropout: found 1"),
        ("data.frame_order=odd", "data.frame_order: found 'odd'"),
        ("data.strict=perhaps", "data.strict: found 'perhaps'"),
        ("train.learning_rate=.inf", "train.learning_rate: found inf"),
        ("loss.beta=.nan", "loss.beta: found nan"),
        ("data.root=0\x85", "data.root: found '0\\x85': value error, holds a control character"),
        (
            'data.features=["a.h5", "b\\t"]',
            "data.features: found ['a.h5', 'b\\t']: value error, holds a control character",
        ),
        (
            'data.frame_order="a\\0b"',
            "data.frame_order: found 'a\\x00b': value error, holds a character that file names cannot have",
        ),
        ("train.epochs=2001-99-99", "train.epochs=2001-99-99: the value is not YAML: month must be in 1..12"),
        ("seed=true", "seed: found True: input should be a valid integer"),
        ("seed=1_0", "seed: found '1_0': input should be a valid integer"),
        ("seed=0b11", "seed: found '0b11': input should be a valid integer"),
        ("train.epochs=1:30", "train.epochs: found '1:30': input should be a valid integer"),
        ("train.learning_rate=1:30", "train.learning_rate: found '1:30': input should be a valid number"),
        ("train.learning_rate=false", "train.learning_rate: found False: input should be a valid number"),
        ("train.fill_lists=1", "train.fill_lists: found 1: input should be a valid boolean"),
        ("data.strict=n", "data.strict: found 'n': input should be a valid boolean"),
        ("data.root=", "data.root: found '': value error, is blank, wanted a path"),
        ("model.heads=3", "model.width 64 is not a multiple of model.heads 3"),
    ],
)
def test_a_value_that_cannot_be_used_is_shown_with_its_key(override: str, expected: str) -> None:
    assert expected in message_of(MINI / "pointwise.yaml", "pointwise", override)


@stage_files
def test_the_file_of_another_stage_is_refused_naming_both(path: Path) -> None:
    for wanted in set(CONFIGS) - {path.stem}:
        message = message_of(path, wanted)
        assert repr(path.stem) in message
        assert repr(wanted) in message


def test_a_file_that_names_no_stage_is_refused(tmp_path: Path) -> None:
    tree = read_tree("pointwise")
    del tree["stage"]
    assert "stage: found None, wanted 'pointwise'" in message_of(write_tree(tmp_path, tree), "pointwise")


def test_a_missing_file_is_answered_with_the_presets_that_have_it(tmp_path: Path) -> None:
    for preset in ("one", "two", "three"):
        (tmp_path / preset).mkdir()
    for preset in ("one", "two"):
        (tmp_path / preset / "ppo.yaml").write_text("stage: ppo\n", encoding="utf-8")
    message = message_of(tmp_path / "three" / "ppo.yaml", "ppo")
    assert "no such config file" in message
    assert f"there are: {tmp_path / 'one' / 'ppo.yaml'}, {tmp_path / 'two' / 'ppo.yaml'}" in message


def test_a_missing_file_of_no_preset_is_refused_alone(tmp_path: Path) -> None:
    message = message_of(tmp_path / "three" / "nothing.yaml", "ppo")
    assert message.endswith("no such config file")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"stage: [ppo", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"- stage\n- ppo\n", "found list, wanted a YAML mapping"),
        (b"", "found NoneType, wanted a YAML mapping"),
        (b"just words", "found str, wanted a YAML mapping"),
        (b"seed: 2001-99-99", "is not YAML: month must be in 1..12"),
        (b"seed: !!bool 7", "is not YAML"),
        (b"seed: 1\nstage: ppo\nseed: 2", "is not YAML: found the key 'seed' twice in one section, wanted it once"),
        (b"stage: ppo\ntrain: {epochs: 1, 'epochs': 2}", "found the key 'epochs' twice"),
        (b"[" * 5_000, "is not YAML"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    message = message_of(path, "ppo")
    assert expected in message
    assert str(path) in message


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(tmp_path, "ppo")


@pytest.mark.parametrize("name", ["7", "on", "2024-05-01"])
def test_a_run_may_have_a_name_that_yaml_takes_for_something_else(name: str) -> None:
    assert load_config(MINI / "pointwise.yaml", "pointwise", [f"name={name}"]).name == name


def test_a_misspelt_section_is_reported_by_its_name(tmp_path: Path) -> None:
    text = (MINI / "pointwise.yaml").read_text(encoding="utf-8").replace("train:\n", "trian:\n")
    (tmp_path / "pointwise.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"trian: unknown key; did you mean train\?"):
        load_config(tmp_path / "pointwise.yaml", "pointwise")


REPEATED = "- &v0 [x]\n" + "".join(f"- &v{level + 1} [{', '.join([f'*v{level}'] * 9)}]\n" for level in range(9))
MERGED = "m0: &m0 {a: 1}\n" + "".join(
    f"m{level + 1}: &m{level + 1} {{<<: [{', '.join([f'*m{level}'] * 9)}]}}\n" for level in range(9)
)


@pytest.mark.parametrize("text", [f"seed:\n{REPEATED}", f"stage:\n{REPEATED}", f"stage: ppo\n{MERGED}", "a: &a [*a]\n"])
def test_aliases_that_stand_for_very_many_values_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ppo.yaml").write_text(text, encoding="utf-8")
    message = message_of(tmp_path / "ppo.yaml", "ppo")
    assert message.endswith("is not YAML: its aliases stand for too many values")


def test_aliases_that_stand_for_few_values_are_read(tmp_path: Path) -> None:
    text = (MINI / "pointwise.yaml").read_text(encoding="utf-8").replace("seed: 7", "seed: &few 7")
    (tmp_path / "pointwise.yaml").write_text(text.replace("epochs: 10", "epochs: *few"), encoding="utf-8")
    assert load_config(tmp_path / "pointwise.yaml", "pointwise").train.epochs == 7


@pytest.mark.parametrize("content", ["seed: " + "1" * 3000, "seed: !!int " + "1:" * 3000 + "1", "#" * 300_000])
def test_what_takes_long_to_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "ppo.yaml").write_text(content, encoding="utf-8")
    assert re.search("a number of|is larger than", message_of(tmp_path / "ppo.yaml", "ppo"))


@pytest.mark.parametrize("stage", IN_PRESETS)
def test_no_value_is_taken_for_one_of_another_type(stage: str) -> None:
    leaves = dict(config_leaves(load(stage).model_dump(mode="json")))
    for key, value in leaves.items():
        if type(value) in (int, float):
            for text in ("true", "off", "1_0", "1:30", "one"):
                assert f"{key}: found" in message_of(MINI / f"{stage}.yaml", stage, f"{key}={text}")
        elif type(value) is bool:
            for text in ("1", "0", "1.0", "n", "'yes'"):
                assert f"{key}: found" in message_of(MINI / f"{stage}.yaml", stage, f"{key}={text}")


@pytest.mark.parametrize("name", ["08", "010", "1e-4", "1_0", "1:30", "0o17", "1.0e5", "null", "0x1F", "~", "1.5"])
def test_a_run_of_an_earlier_version_keeps_its_name(tmp_path: Path, name: str) -> None:
    tree = read_tree("pointwise") | {"name": name}
    assert load_config(write_tree(tmp_path, tree), "pointwise").name == name


def test_the_evaluated_folder_is_that_of_the_run_if_it_is_null() -> None:
    assert load("evaluate", "root=null").root is None
    assert load("evaluate", "root=nulls").root == Path("nulls")


@pytest.mark.parametrize("stage", IN_PRESETS)
def test_a_seed_is_one_that_every_generator_takes(stage: str) -> None:
    assert load_config(MINI / f"{stage}.yaml", stage, [f"seed={2**32 - 1}"]).seed == 2**32 - 1
    for seed in (2**32, 2**64, -1):
        assert f"seed: found {seed}: input should be" in message_of(MINI / f"{stage}.yaml", stage, f"seed={seed}")


def test_values_that_repeat_themselves_are_shortened(tmp_path: Path) -> None:
    doubled = "".join(f"- &v{level + 1} [{', '.join([f'*v{level}'] * 9)}]\n" for level in range(9))
    (tmp_path / "ppo.yaml").write_text(f"stage: ppo\nseed:\n- &v0 [x]\n{doubled}", encoding="utf-8")
    assert len(message_of(tmp_path / "ppo.yaml", "ppo")) < 100_000


LOSS_SECTIONS: dict[str, type[LossConfig]] = {
    get_args(member)[0].model_fields["name"].default: get_args(member)[0]
    for union in (RankingLoss, PreferenceLoss)
    for member in get_args(get_args(union)[0])
}


def test_the_losses_of_the_tables_have_sections() -> None:
    assert list(LOSS_SECTIONS) == [*RANKING_LOSSES, *PREFERENCE_LOSSES]


@pytest.mark.parametrize("name", LOSS_SECTIONS)
def test_a_loss_has_the_parameters_and_defaults_of_its_function(name: str) -> None:
    parameters = signature({**RANKING_LOSSES, **PREFERENCE_LOSSES}[name]).parameters
    inputs = ["scores", "grades", "mask"] if name in RANKING_LOSSES else ["chosen", "rejected"]
    fields = {key: field for key, field in LOSS_SECTIONS[name].model_fields.items() if key != "name"}
    ends = ["total"] if name in RANKING_LOSSES else ["total", "counted"]
    assert [*inputs, *fields, *ends] == list(parameters)
    # Presets write out the parameters of the published losses.
    assert all(field.is_required() or field.default == parameters[key].default for key, field in fields.items())


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_the_name_of_a_loss_is_enough_to_choose_it(name: str) -> None:
    if name == "smooth_l1":
        assert load("pointwise", f"loss.name={name}").loss.parameters == {"beta": 0.3}
    else:
        assert load("pointwise", f"loss.name={name}").loss == LOSS_SECTIONS[name](name=name)


def test_the_parameters_of_a_loss_are_overridden_and_checked() -> None:
    loss = load("pointwise", "loss.k=5", "loss.mu=1", "loss.name=ndcg_loss2pp").loss
    assert loss.parameters == {"sigma": 1.0, "mu": 1.0, "k": 5}
    for override, found in (("loss.k=0", "loss.k: found 0"), ("loss.sigma=0", "loss.sigma: found 0")):
        assert found in message_of(MINI / "pointwise.yaml", "pointwise", "loss.name=lambdarank", override)


def test_the_recommended_recipe_is_that_of_both_our_presets() -> None:
    mini, pooled = (load_config(MINI.parent / preset / "ppo.yaml", "ppo") for preset in ("mini", "lrmovienet_pooled"))
    assert (mini.policy, mini.ranker, mini.reward) == (pooled.policy, pooled.ranker, pooled.reward)
    assert mini.policy.name == "exact"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("mine", "finetune/mine"),
        ("newest", "finetune/newest"),
        ("pointwise/mine", "pointwise/mine"),
        ("logs/x/mine", "logs/x/mine"),
        ("none", "none"),
    ],
)
def test_a_runs_name_alone_is_of_the_stage_that_the_preset_names(given: str, found: str) -> None:
    assert load_config(MINI / "ppo.yaml", "ppo", [f"ranker={given}"]).ranker == found
    assert load_config(MINI.parent / "lrmovienet" / "ppo.yaml", "ppo", [f"ranker={given}"]).ranker == given

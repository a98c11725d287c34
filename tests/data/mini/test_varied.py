"""The varied world: list lengths, scales, rare labels, long descriptions, and annotators who contradict."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lr2ppo.data.annotations import Clip, graded
from lr2ppo.data.mini import varied
from lr2ppo.data.mini.drawing import Pixels
from lr2ppo.data.mini.varied import NOUNS, Told, VariedWorld
from lr2ppo.encoders.pretrain import build_tokenizer
from lr2ppo.encoders.text import MAX_TOKENS

CLIPS = {"source": 80, "training": 300, "test": 150}


@dataclass(frozen=True)
class Drawn:
    """A clip with what its grades and pairs depend on."""

    clip: Clip
    visible: Pixels
    told: Told
    salience: NDArray[np.float64]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Drawn]]:
    """Clips of one world: of the source, and of the target's training and test split."""
    rng = np.random.default_rng(4)
    world = VariedWorld.draw(rng)
    target_salience = varied.target_salience
    seen: list[tuple[Pixels, Told, NDArray[np.float64]]] = []

    def record(visible: Pixels, told: Told) -> NDArray[np.float64]:
        salience = target_salience(visible, told)
        seen.append((visible, told, salience))
        return salience

    root = tmp_path_factory.mktemp("varied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varied, "target_salience", record)
        patch.setattr("lr2ppo.data.mini.drawing._write_picture", lambda root, name, picture: name)
        return {
            split: [draw_one(world, split, f"{split}-{number}", root, rng, seen) for number in range(count)]
            for split, count in CLIPS.items()
        }


def draw_one(
    world: VariedWorld,
    split: str,
    name: str,
    root: Path,
    rng: np.random.Generator,
    seen: list[tuple[Pixels, Told, NDArray[np.float64]]],
) -> Drawn:
    clip = world.draw_clip("source" if split == "source" else "target", name, root, rng)
    return Drawn(clip, *seen[-1])


def count_labels(clips: Sequence[Drawn]) -> Counter[str]:
    return Counter(label for one in clips for label in one.clip.labels)


@pytest.mark.parametrize("split", CLIPS)
def test_lists_have_3_to_37_labels_most_of_them_5_to_20(drawn: dict[str, list[Drawn]], split: str) -> None:
    lengths = np.array([len(one.clip.labels) for one in drawn[split]])
    assert lengths.min() in (3, 4)
    assert 25 < lengths.max() <= 37
    assert np.mean((lengths >= 5) & (lengths <= 20)) > 0.6
    assert all(len(set(one.clip.labels)) == len(one.clip.labels) for one in drawn[split])


def test_clips_have_1_to_6_frames(drawn: dict[str, list[Drawn]]) -> None:
    assert {len(one.clip.images) for one in drawn["training"]} == {1, 2, 3, 4, 5, 6}


def test_grades_cut_the_salience_of_the_domain_on_one_of_its_scales(drawn: dict[str, list[Drawn]]) -> None:
    for split, scales in (("source", {2, 4}), ("training", {1, 2, 4}), ("test", {1, 2, 4})):
        used = Counter(int(graded(one.clip).max()) for one in drawn[split])
        # A clip may lack the highest grade of its scale.
        assert set(used) >= scales
        assert max(used) == 4
        for one in drawn[split]:
            grades = graded(one.clip)
            salience = one.visible.mean(0) if split == "source" else one.salience
            order = np.argsort(salience)
            assert np.all(np.diff(grades[order]) >= 0)
            assert grades.max() > 0


def test_the_targets_salience_follows_what_is_said_and_how_steadily_it_is_seen() -> None:
    said = np.eye(4, dtype=bool)
    seen = np.zeros((4, 4), dtype=np.int64)
    salience = varied.target_salience(seen, Told("", said[0], said[1], said[2]))
    headline, later, negated, unsaid = salience
    assert headline > later > unsaid == 0 > negated
    seen[:2, 3] = 12
    half = varied.target_salience(seen, Told("", said[0], said[1], said[2]))[3]
    seen[:, 3] = 12
    steady = varied.target_salience(seen, Told("", said[0], said[1], said[2]))[3]
    seen[:, 3] = 400
    large = varied.target_salience(seen, Told("", said[0], said[1], said[2]))[3]
    assert 0 < half < steady < large
    assert large - steady < steady - half


def test_descriptions_say_what_counts(drawn: dict[str, list[Drawn]]) -> None:
    negations = [re.escape(text).replace(r"\{\}", r"(\w+)") for text in varied.NEGATIONS]
    kinds = set()
    for one in itertools.chain(*drawn.values()):
        headline, *rest = one.clip.description.split(" . ")
        names = np.array(one.clip.labels)
        assert set(re.findall(r"\w+", headline)) & set(NOUNS) == set(names[one.told.headline])
        negated = {
            match[1] for text in negations for sentence in rest if (match := re.match(text, f"{sentence} .".strip()))
        }
        mentioned = set(re.findall(r"\w+", " ".join(rest))) & set(NOUNS)
        assert mentioned - negated == set(names[one.told.later])
        visible = set(names[one.visible.sum(0) > 0])
        kinds |= {word in visible for word in negated}
    assert kinds == {False, True}


def test_only_the_targets_mentions_hint_at_grades(drawn: dict[str, list[Drawn]]) -> None:
    gains = {}
    for split in ("source", "training"):
        grades = np.concatenate([graded(one.clip) for one in drawn[split]])
        said = np.concatenate([one.told.headline | one.told.later for one in drawn[split]])
        gains[split] = grades[said].mean() - grades[~said].mean()
    assert gains["source"] < 0.1 < 0.8 < gains["training"]


def test_texts_fit_the_tiny_encoder(drawn: dict[str, list[Drawn]]) -> None:
    clips = [one.clip for one in itertools.chain(*drawn.values())]
    captions = [f"a picture of a {one} and a {other} on the sand" for one, other in itertools.pairwise(NOUNS)]
    tokenizer = build_tokenizer([*captions, *(clip.description for clip in clips), *NOUNS], 1000)
    texts = [(label, clip.description) for clip in clips for label in clip.labels]
    longest = max(map(len, tokenizer([label for label, _ in texts], [text for _, text in texts])["input_ids"]))
    assert longest < 0.75 * MAX_TOKENS


def test_some_test_labels_are_rare_or_missing_in_the_targets_training_clips(drawn: dict[str, list[Drawn]]) -> None:
    training, test = count_labels(drawn["training"]), count_labels(drawn["test"])
    rare = {noun for noun in NOUNS if training[noun] <= 3}
    assert 8 <= len(rare) <= 20
    assert len(rare & test.keys()) >= 5
    assert training.most_common(1)[0][1] > 200
    # In the source other nouns are rare.
    assert sum(count_labels(drawn["source"])[noun] for noun in rare) > 2 * len(rare)


def test_12_to_20_percent_of_the_judged_pairs_contradict_the_salience(drawn: dict[str, list[Drawn]]) -> None:
    gaps = []
    for one in drawn["training"]:
        pairs = one.clip.pairs
        assert len(set(map(frozenset, pairs.tolist()))) == len(pairs) > 0
        gaps.append(one.salience[pairs[:, 0]] - one.salience[pairs[:, 1]])
    gap = np.concatenate(gaps)
    assert np.all(gap != 0)
    assert 0.12 < np.mean(gap < 0) < 0.20
    shares = [np.mean(gap[(abs(gap) > low) & (abs(gap) <= high)] < 0) for low, high in ((0, 0.1), (0.2, 0.4), (0.6, 2))]
    assert shares[0] > 0.3
    assert shares[0] > shares[1] > shares[2]


def test_one_annotator_in_four_judges_by_the_source() -> None:
    rng = np.random.default_rng(0)
    # The first label is far better in the target, far worse in the source.
    target, source = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    first = np.mean([varied.judge(target, source, rng)[0, 0] == 0 for _ in range(2000)])
    assert first == pytest.approx(0.75, abs=0.04)
    agreed = np.mean([varied.judge(target, target, rng)[0, 0] == 0 for _ in range(500)])
    assert agreed > 0.99
    assert len(varied.judge(np.zeros(5), np.arange(5.0), rng)) == 0

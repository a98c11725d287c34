"""The varied world: lists of 3 to 37 labels, rare labels, several scales of grades, and annotators who contradict.

A label's *salience* says how relevant it is. In the source domain it is how much of the picture the thing fills; in
the target domain what the description says of it counts most. Grades cut it, on one of several scales for each clip;
annotators compare it, with errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lr2ppo.data.annotations import Clip
from lr2ppo.data.mini import uniform
from lr2ppo.data.mini.drawing import SEEN_PIXELS, SIZE, Generator, Pixels, Things, draw_frames, draw_scene

NOUNS = (
    *uniform.NOUNS,
    *(
        "balloon barrel bench bicycle brush button camera carpet coin cup desk dice glove helmet key lock mug needle "
        "oven parrot rocket shoe spoon violin"
    ).split(),
)
SHORTEST, LONGEST = 3, 37
MOST_FRAMES = 6
# A noun's frequency falls with this power of its rank.
RANK_POWER = 1.2
# In the target domain, the nouns of the last ranks are rarer still: some are never in a training clip.
RARE, RARER = 20, 0.1

HEADLINES = (
    "this story is about the {} in the {scene} .",
    "a short film about the {} , made in the {scene} .",
    "in the {scene} all turns around the {} .",
)
LATER_MENTIONS = (
    "after a while we see the {} too .",
    "then the {} comes into view .",
    "people walk past the {} .",
    "near the end there is the {} again .",
)
NEGATIONS = ("there is no {} here .", "the {} is not part of it .", "nobody found a {} .")
FILLERS = (
    "the day is warm and quiet .",
    "someone tells a joke and people laugh .",
    "slow music plays all the time .",
    "it was made last summer by two friends .",
    "the light changes a few times .",
)

# The target's salience: weights of what the description says of a label and of what the frames show.
HEADLINE, LATER, NEGATED, STEADINESS, FULLNESS = 0.5, 0.25, -0.25, 0.3, 0.1
# The share of the picture that counts as full.
FULL = 0.08
# The lowest salience of each grade above 0, on scales of 2, 3 and 5 grades.
SCALES = {
    "source": ((0.11, 0.44), (0.06, 0.15, 0.30, 0.50)),
    "target": ((0.50,), (0.40, 0.65), (0.25, 0.45, 0.60, 0.75)),
}

# How far saliences must differ for an annotator to prefer the higher with probability 0.73.
UNSURE = 0.1
# One annotator in so many judges mostly as in the source domain.
ANNOTATORS = 4
SOURCE_OPINION = 0.8


@dataclass(frozen=True)
class Told:
    """What a description says of a clip's labels, `[labels]` each: in its headline, later, or that there is none."""

    description: str
    headline: NDArray[np.bool_]
    later: NDArray[np.bool_]
    negated: NDArray[np.bool_]


@dataclass(frozen=True)
class VariedWorld:
    """A world of 64 things, and how often each is a label in each domain: `[nouns]`."""

    things: Things
    frequencies: dict[str, NDArray[np.float64]]

    @classmethod
    def draw(cls, rng: Generator) -> "VariedWorld":
        things = Things.draw(NOUNS, rng)
        weights = np.arange(1, len(NOUNS) + 1) ** -RANK_POWER
        # Each domain has its own order of ranks: what is rare in one may be frequent in the other.
        source = rng.permutation(weights)
        weights[-RARE:] *= RARER
        target = rng.permutation(weights)
        return cls(things, {"source": source / source.sum(), "target": target / target.sum()})

    def pairs_of_share(self, share: int, labels: int) -> int:
        """How many pairs of a clip a share is, in percent: at least one."""
        return max(1, round(share / 100 * labels * (labels - 1) / 2))

    def draw_clip(self, domain: str, name: str, root: Path, rng: Generator) -> Clip:
        """Draw one clip of the `source` or `target` domain, with all its judged pairs; write its frames."""
        labels = draw_length(rng)
        drawn = rng.choice(len(NOUNS), size=labels, replace=False, p=self.frequencies[domain])
        # Frequent nouns are drawn first.
        candidates = rng.permutation(drawn)
        scene = draw_scene(rng)
        present = rng.permutation(labels)[: min(labels - 1, rng.integers(5, 10))]
        frames = int(rng.integers(1, MOST_FRAMES + 1))
        images, visible = draw_frames(self.things, candidates, present, frames, scene, name, root, rng)
        names = tuple(NOUNS[noun] for noun in candidates)
        # If the source named any label alike often, a mention would still hint at a high grade: in short lists more
        # labels are mentioned and more are visible.
        absent = np.setdiff1d(np.arange(labels), present)
        told = tell(names, scene, absent if domain == "source" else present, rng)
        salience = {"source": source_salience(visible), "target": target_salience(visible, told)}
        scales = SCALES[domain]
        return Clip(
            id=name,
            labels=names,
            grades=np.digitize(salience[domain], scales[rng.integers(len(scales))]),
            description=told.description,
            filename=f"{name}.mp4",
            images=images,
            pairs=judge(salience["target"], salience["source"], rng),
        )


def draw_length(rng: Generator) -> int:
    """Draw the length of a list: 3 to 37, most often 5 to 20."""
    return SHORTEST + int(rng.beta(1.8, 4.0) * (LONGEST - SHORTEST + 1))


def tell(names: Sequence[str], scene: str, likely: NDArray[np.int64], rng: Generator) -> Told:
    """Tell a story of a clip: a headline, then mentions, negated mentions and sentences of nothing in random order.

    Seven mentions in ten are of the `likely` labels, where there are others.
    """
    weights = np.full(len(names), 0.3 / max(1, len(names) - len(likely)))
    weights[likely] = 0.7 / len(likely)
    order = rng.choice(len(names), size=len(names), replace=False, p=weights / weights.sum())
    ends = np.cumsum([rng.integers(1, 3), rng.integers(1, 5), rng.integers(0, 2)])
    headline, later, negated, _ = np.split(order, ends)
    about = " and the ".join(names[label] for label in headline)
    first = str(rng.choice(HEADLINES)).format(about, scene=scene)
    mentions = rng.permutation(LATER_MENTIONS)
    rest = [str(mention).format(names[label]) for mention, label in zip(mentions, later, strict=False)]
    rest += [str(rng.choice(NEGATIONS)).format(names[label]) for label in negated]
    rest += [str(filler) for filler in rng.permutation(FILLERS)[: rng.integers(1, 4)]]
    description = " ".join([first, *rng.permutation(rest).tolist()])
    return Told(description, *(np.isin(np.arange(len(names)), said) for said in (headline, later, negated)))


def source_salience(visible: Pixels) -> NDArray[np.float64]:
    """How much of the picture a thing fills, 1 if it is full. visible: [frames, labels] pixels."""
    filled: NDArray[np.float64] = visible.mean(0) / SIZE**2
    return np.minimum(1.0, filled / FULL)


def target_salience(visible: Pixels, told: Told) -> NDArray[np.float64]:
    """What the clip is about: mentions, steadiness and a little size. visible: [frames, labels] pixels."""
    steadiness = (visible >= SEEN_PIXELS).mean(0)
    said = HEADLINE * told.headline + LATER * told.later + NEGATED * told.negated
    salience: NDArray[np.float64] = said + STEADINESS * steadiness + FULLNESS * source_salience(visible)
    return salience


def judge(target: NDArray[np.float64], source: NDArray[np.float64], rng: Generator) -> NDArray[np.int64]:
    """All pairs of labels of different target salience, each once, as one annotator orders them: [pairs, 2].

    An annotator prefers the more salient label with a probability that falls to 1/2 as the saliences approach. Three in
    four compare the target's salience, one mostly the source's. 12 to 20 % of the pairs contradict the target's
    (tests/data/mini/test_varied.py).
    """
    pairs = np.stack(np.triu_indices(len(target), 1), axis=1)
    pairs = pairs[~np.isclose(target[pairs[:, 0]], target[pairs[:, 1]])]
    in_target, in_source = (salience[pairs[:, 0]] - salience[pairs[:, 1]] for salience in (target, source))
    of_source = np.where(rng.integers(ANNOTATORS, size=len(pairs)) == 0, SOURCE_OPINION, 0.0)
    margins = of_source * in_source + (1 - of_source) * in_target
    first_wins = rng.random(len(pairs)) < 1 / (1 + np.exp(-margins / UNSURE))
    judged: NDArray[np.int64] = np.where(first_wins[:, None], pairs, pairs[:, ::-1])
    return judged

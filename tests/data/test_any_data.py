"""Data other than clips with RoBERTa and ViT features and grades 0 to 2: it is read, batched and trained on."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.data.annotations import Clip, read_clips, write_clips
from lr2ppo.data.dataset import ClipBatch, ClipDataset, collate
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.data.features.writer import FeatureWriter
from lr2ppo.data.samplers import annotated_pairs, graded_lists, random_pairs, whole_clips, whole_lists
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.models import RelevanceRanker
from lr2ppo.stages import pointwise
from tests.conftest import REPOSITORY

WIDTH = 8


def rows(count: int, width: int = WIDTH, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def clip(name: str, labels: int, highest: int = 2) -> Clip:
    return Clip(name, tuple(f"label {n}" for n in range(labels)), grades=np.arange(labels) % (highest + 1))


def batch_of(path: Path, clips: Sequence[Clip], exact: bool = False) -> ClipBatch:
    dataset = ClipDataset(clips, FeatureStore([path]), frames=3, exact_frames=exact)
    return collate([dataset[request] for request in whole_clips(clips)])


def ranker(head: str) -> RelevanceRanker:
    torch.manual_seed(0)
    shape = {"head": head, "attention": "scaled", "width": WIDTH, "heads": 2, "dropout": 0.0}
    return RelevanceRanker(ModelConfig.model_validate(shape | {"text_tokens": 2, "frames": 3})).eval()


@pytest.mark.parametrize("head", ["pooled", "flatten"])
def test_a_clip_without_frames_is_scored_by_its_text_and_changes_no_other(head: str, tmp_path: Path) -> None:
    clips = [clip("seen", 2), clip("unseen", 2)]
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.write("seen", [rows(2), rows(2, seed=1)], rows(3))
        writer.write("unseen", [rows(2), rows(2, seed=1)], rows(0))
    exact = head == "flatten"
    model = ranker(head)
    together = model(**batch_of(tmp_path / "f.h5", clips, exact).inputs())
    assert together.isfinite().all()
    assert together[1, 0] != together[1, 1]
    for number, alone in enumerate(clips):
        scores = model(**batch_of(tmp_path / "f.h5", [alone], exact).inputs())
        torch.testing.assert_close(scores[0], together[number])


def test_the_pooled_head_reads_the_token_at_which_the_data_says_the_label_starts(tmp_path: Path) -> None:
    text = rows(3)
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.write("first", [text], rows(1), label_span=[(0, 1)])
        writer.write("second", [text], rows(1), label_span=[(1, 2)])
        writer.write("default", [text], rows(1))
    batch = batch_of(tmp_path / "f.h5", [clip(name, 1) for name in ("first", "second", "default")])
    first, second, default = ranker("pooled")(**batch.inputs()).flatten().tolist()
    assert first != second
    assert default == second, "RoBERTa's tokens: the label starts after <s>"


def test_labels_of_a_single_token_are_scored(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.write("documents", list(rows(5)[:, None]), rows(0))
    batch = batch_of(tmp_path / "f.h5", [clip("documents", 5)])
    scores = ranker("pooled")(**batch.inputs())
    assert len(scores.unique()) == 5
    assert batch.label_span.tolist() == [[[0, 1]] * 5]


def write_two_domains(root: Path, source_domain: str, target_domain: str) -> None:
    """Write a source with 8 features and a target with 5, in separate files, graded 0 to 4."""
    sizes = {"source": (8, source_domain), "target": (5, target_domain), "val": (5, target_domain)}
    for name, (width, domain) in sizes.items():
        clips = [clip(f"{name}-{number}", 5, highest=4) for number in range(6)]
        metadata = {"domain": domain} if domain else {}
        with FeatureWriter(root / f"{name}.h5", metadata) as writer:
            for number, each in enumerate(clips):
                writer.write(each.id, list(rows(5, width, seed=number)[:, None]), np.zeros((0, 1), np.float32))
        write_clips(root / f"{name}.json", clips)


def test_two_domains_of_different_widths_and_grades_to_4_train_a_ranker(tmp_path: Path, alone: Processes) -> None:
    write_two_domains(tmp_path, "web", "library")
    settings = ["name=a", f"logs={tmp_path / 'logs'}", f"data.root={tmp_path}", "model.width=8", "model.heads=2"]
    settings += [
        "data.features=[source.h5, target.h5, val.h5]",
        "data.train=source.json",
        "data.validation=val.json",
        "train.epochs=2",
    ]
    config = load_config(REPOSITORY / "configs" / "mini" / "pointwise.yaml", "pointwise", settings)
    torch.manual_seed(config.seed)
    pointwise.train(config, alone, False)
    assert (tmp_path / "logs" / "pointwise" / "a" / "finished.json").is_file()
    store = FeatureStore([tmp_path / "source.h5", tmp_path / "target.h5"])
    text, _ = store.text("target-0", [0])
    assert text.shape == (1, 1, 8)
    assert not text[..., 5:].any()


def test_widths_that_differ_within_a_domain_are_refused(tmp_path: Path, alone: Processes) -> None:
    write_two_domains(tmp_path, "", "")
    settings = [
        "name=a",
        f"logs={tmp_path / 'logs'}",
        f"data.root={tmp_path}",
        "data.features=[source.h5, target.h5, val.h5]",
    ]
    settings += ["data.train=source.json", "data.validation=val.json"]
    config = load_config(REPOSITORY / "configs" / "mini" / "pointwise.yaml", "pointwise", settings)
    with pytest.raises(UserError, match=r"found feature widths \(5, 1\), others have \(8, 1\)"):
        pointwise.train(config, alone, False)


@pytest.mark.parametrize("span", [(-1, 1), (1, 1), (0, 3)])
def test_a_span_beyond_a_labels_tokens_is_refused(span: tuple[int, int], tmp_path: Path, alone: Processes) -> None:
    write_clips(tmp_path / "clips.json", [clip("a", 2)])
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.write("a", [rows(2), rows(2)], rows(1), label_span=[(0, 1), (1, 2)])
    with h5py.File(tmp_path / "f.h5", "a") as file:
        file["a/label_span"][1] = span
    settings = ["name=a", f"logs={tmp_path / 'logs'}", f"data.root={tmp_path}", "data.features=f.h5"]
    settings += ["data.train=clips.json", "data.validation=clips.json"]
    config = load_config(REPOSITORY / "configs" / "mini" / "pointwise.yaml", "pointwise", settings)
    with pytest.raises(UserError, match="clip a: label_span: wanted a start and a stop within each label's tokens"):
        pointwise.train(config, alone, False)


def test_grades_of_another_scale_are_read_and_those_beyond_10_are_not(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips.json", [clip("a", 5, highest=4)])
    (found,) = read_clips(tmp_path / "clips.json", "grades")
    assert found.grades is not None
    assert found.grades.tolist() == [0, 1, 2, 3, 4]
    write_clips(tmp_path / "clips.json", [clip("a", 12, highest=11)])
    with pytest.raises(UserError, match="found 11, wanted a whole number from 0 to 10"):
        read_clips(tmp_path / "clips.json", "grades")


def test_a_loss_gets_each_label_once_where_short_lists_are_not_filled() -> None:
    clips = [clip("short", 3), clip("long", 9)]
    for fill, listed in ((True, [6, 6]), (False, [3, 6])):
        requests = graded_lists(clips, 6, fill)(np.random.default_rng(0))
        found = {request.clip: request for request in requests}
        assert [len(found[number].listed) for number in range(2)] == listed  # type: ignore[arg-type]
    assert [sorted(request.labels[request.listed]) for request in requests if request.clip == 0] == [[0, 1, 2]]


def test_whole_lists_hold_all_labels_of_a_clip_and_mean_the_same_ones() -> None:
    clips = [Clip(each.id, each.labels, each.grades, pairs=np.array([[2, 0], [5, 1]])) for each in [clip("a", 9)]]
    for draw in (graded_lists(clips, 4), annotated_pairs(clips, 1), random_pairs(clips, 2, 3)):
        parts, wholes = (each(np.random.default_rng(0)) for each in (draw, whole_lists(draw, clips)))
        for part, whole in zip(parts, wholes, strict=True):
            assert len(part.labels) < 9
            assert whole.labels.tolist() == list(range(9))
            for own, among_all in ((part.listed, whole.listed), (part.pairs, whole.pairs)):
                if own is not None and among_all is not None:
                    assert (part.labels[own] == whole.labels[among_all]).all()

"""Encoders: loading, shapes, and that padding and batching change nothing."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from lr2ppo.cli import main
from lr2ppo.data import annotations, read_clips
from lr2ppo.data.captions import captions_fingerprint, contains_words, read_captions
from lr2ppo.data.frames import require_frames
from lr2ppo.data.mini import SIZES, write_mini
from lr2ppo.encoders import ImageEncoder, TextEncoder, pretrain
from lr2ppo.encoders.extract import find_clips
from lr2ppo.encoders.text import SPECIAL_TOKENS, roberta_tokenizer
from lr2ppo.errors import UserError
from lr2ppo.files import write_json


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    write_mini(root, seed=5, sizes=dict.fromkeys(SIZES, 6) | {"pretraining": 40})
    return root


@pytest.fixture(scope="module")
def encoders(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained encoders, saved as pretraining saves them."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("encoders")
    captions = read_captions(mini, 100, np.random.default_rng(0))
    tokenizer = pretrain.build_tokenizer([*captions.captions, *captions.texts, *captions.words], 500)
    text = pretrain.build_text_model(len(tokenizer), width=32, layers=2, heads=4, max_tokens=40)
    vit, shape = pretrain.build_image_model(width=32, layers=2, heads=4, size=64, patch=8)
    pretrain.save(out, text, tokenizer, vit, shape)
    return out


def test_text_features_do_not_depend_on_the_texts_beside_them(encoders: Path) -> None:
    encoder = TextEncoder.load(encoders / "roberta")
    texts = [
        ("boat", "a boat in the sea"),
        ("car", ""),
        ("a very long label of words", "and a longer description " * 3),
    ]
    together = encoder(texts)
    for text, features in zip(texts, together, strict=True):
        (alone,) = encoder([text])
        assert features.shape == alone.shape
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


def test_a_text_is_the_pair_of_label_and_description_cut_to_the_maximum_length(encoders: Path) -> None:
    encoder = TextEncoder.load(encoders / "roberta")
    ids = encoder.tokenize([("boat", "the sea")])["input_ids"][0].tolist()
    tokens = encoder.tokenizer.convert_ids_to_tokens(ids)
    assert [tokens[0], tokens[-1]] == ["<s>", "</s>"]
    middle = tokens.index("</s>")
    assert tokens[middle : middle + 2] == ["</s>", "</s>"]
    assert encoder.tokenizer.decode(ids[1:middle]).strip() == "boat"
    assert encoder.tokenize([("boat", "the sea " * 100)])["input_ids"].shape[1] == 40


SENTENCES = "a boat in the sea,\n  a car (red), it's 3 o'clock: 船 на море, déjà vu - and the night sky. "
LONG_TEXTS = {
    "description": ("boat", SENTENCES * 800),
    "label": (SENTENCES * 800, "the sea"),
    "both": (SENTENCES * 20, SENTENCES * 25),
    "spaces": ("boat", " " * 40_000 + "the sea " * 100),
    "one word": ("boat", "boat" * 20_000),
    "letters of several bytes": ("船", "船が海にある。" * 8000),
}


def uncut(encoder: TextEncoder, text: tuple[str, str]) -> list[int]:
    """The ids of a text as its tokenizer makes them of all of it."""
    whole = encoder.tokenizer(*text, truncation=True, max_length=encoder.max_tokens)
    return list(whole["input_ids"])


@pytest.mark.parametrize("name", LONG_TEXTS)
def test_a_long_text_has_the_tokens_it_has_uncut(encoders: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, text = TextEncoder.load(encoders / "roberta"), LONG_TEXTS[name]
    wanted, count = uncut(encoder, text), []
    label = encoder.tokenizer(*text, truncation=True, max_length=encoder.max_tokens).sequence_ids().count(0)
    tokenizer = type(encoder.tokenizer)
    call = tokenizer.__call__

    def counted(self: Any, labels: list[str], descriptions: list[str], **options: Any) -> Any:
        count.append(sum(map(len, [*labels, *descriptions])))
        return call(self, labels, descriptions, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    assert encoder.tokenize([text])["input_ids"][0].tolist() == wanted
    assert encoder.label_spans([text]) == [(1, 1 + label)]
    assert max(count) < sum(map(len, text)) / 3, "no more of the text is tokenized than may be kept"


def test_words_that_the_tokenizer_does_not_know_may_have_any_length(encoders: Path) -> None:
    known = {token: number for number, token in enumerate([*SPECIAL_TOKENS, "boat"])}
    words = Tokenizer(WordLevel(known, unk_token=SPECIAL_TOKENS[3]))
    words.pre_tokenizer = WhitespaceSplit()
    encoder = TextEncoder(TextEncoder.load(encoders / "roberta").model, roberta_tokenizer(words), 40)
    text = ("boat", "unknown " * 10 + "x" * 5000 + " boat" * 5)
    assert encoder.tokenize([text])["input_ids"][0].tolist() == uncut(encoder, text)


def test_frame_tokens_are_the_class_token_or_a_grid_of_pooled_patches(encoders: Path) -> None:
    pictures = [Image.fromarray(np.full((50, 80, 3), value, dtype=np.uint8)) for value in (0, 200)]
    by_class = ImageEncoder.load(encoders / "vit")
    by_patches = ImageEncoder.load(encoders / "vit", "patches")
    tokens = by_class.encode_pixels(torch.stack([by_class.transform(picture) for picture in pictures]))
    assert tokens.shape == (2, 65, 32)
    torch.testing.assert_close(by_class(pictures), tokens[:, :1])
    grid = tokens[:, 1:].unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(by_patches(pictures), grid)


def test_a_picture_of_16_bits_has_the_features_of_8_bits(encoders: Path, tmp_path: Path) -> None:
    encoder = ImageEncoder.load(encoders / "vit")
    picture = Image.linear_gradient("L")
    deep = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    wanted = encoder.transform(picture.convert("RGB"))
    torch.testing.assert_close(encoder([deep]), encoder([picture]))
    torch.testing.assert_close(pretrain.load_pictures([tmp_path / "deep.png"], encoder)[0], wanted.half())


def test_saved_encoders_give_what_they_gave_before(mini: Path, encoders: Path, tmp_path: Path) -> None:
    first = TextEncoder.load(encoders / "roberta")
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = TextEncoder.load(tmp_path)
    torch.testing.assert_close(first([("boat", "the sea")])[0], again([("boat", "the sea")])[0])


def test_a_roberta_folder_that_lacks_its_config_is_refused(encoders: Path, tmp_path: Path) -> None:
    shutil.copytree(encoders / "roberta", tmp_path / "roberta")
    (tmp_path / "roberta" / "config.json").unlink()
    with pytest.raises(UserError, match=r"found no config\.json"):
        TextEncoder.load(tmp_path / "roberta")


def test_a_folder_that_is_no_vit_is_refused(encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found nothing, wanted a ViT"):
        ImageEncoder.load(tmp_path)
    with pytest.raises(UserError, match="holds a RoBERTa text encoder, wanted a ViT"):
        ImageEncoder.load(encoders / "roberta")


def test_words_are_found_whole() -> None:
    found = contains_words(["a red carpet", "The car, here"], ["car", "red carpet"])
    assert found.tolist() == [[False, True], [True, False]]


def test_masking_hides_description_words_but_never_the_label(mini: Path) -> None:
    torch.manual_seed(0)
    captions = read_captions(mini, 100, np.random.default_rng(0))
    tokenizer = pretrain.build_tokenizer([*captions.captions, *captions.texts, *captions.words], 500)
    text = pretrain.build_text_model(len(tokenizer), width=32, layers=1, heads=2, max_tokens=40)
    vit, _ = pretrain.build_image_model(width=32, layers=1, heads=2, size=64, patch=8)
    encoder = TextEncoder(text.roberta, tokenizer, 40)
    model = pretrain.Pretraining(text, encoder, ImageEncoder(vit, "patches"), captions)
    tokens = encoder.tokenize([("boat", "a boat and a car in the sea with a boat")] * 200)
    masked, chosen = model._mask_words(tokens["input_ids"], tokens["attention_mask"])
    shown = tokens["input_ids"][chosen].unique().tolist()
    words = {word.strip() for word in tokenizer.batch_decode([[token] for token in shown])}
    assert "boat" not in words
    assert {"and", "in", "the"} <= words
    assert (masked[chosen] == tokenizer.mask_token_id).all()
    maskable = 9 * 200
    assert 0.12 < chosen.sum() / maskable < 0.18


def test_pretraining_needs_a_label_that_some_text_names(tmp_path: Path, mini: Path) -> None:
    for name in (annotations.SOURCE_TRAIN, annotations.TARGET_TRAIN):
        clips = read_clips(mini / name)
        plain = [type(clip)(clip.id, clip.labels, clip.grades, "nothing", images=clip.images) for clip in clips]
        annotations.write_clips(tmp_path / name, plain)
    with pytest.raises(UserError, match="no description names any label"):
        read_captions(tmp_path, 100, np.random.default_rng(0))


def test_extraction_takes_files_and_names_them_in_the_store(mini: Path, encoders: Path, tmp_path: Path) -> None:
    stores: list[Path] = []
    for text, image in (("roberta", "vit"), ("roberta/model.safetensors", "vit/model.safetensors")):
        stores.append(tmp_path / f"{len(stores)}.h5")
        command = f"--data {mini} --text {encoders / text} --image {encoders / image} --out {stores[-1]} --device cpu"
        main(["extract", *command.split()])
    with h5py.File(stores[0]) as by_folder, h5py.File(stores[1]) as by_file:
        assert len(by_file) == 24
        clip = next(iter(by_file))
        for name in ("text_emb", "img_emb"):
            np.testing.assert_array_equal(by_folder[clip][name], by_file[clip][name])
        assert by_folder.attrs["text_encoder"].startswith(b"roberta@")
        assert by_file.attrs["image_encoder"] == by_folder.attrs["image_encoder"].replace(
            b"vit@", b"model.safetensors@"
        )


def test_extraction_reads_every_clip_once_and_names_missing_frames(mini: Path, tmp_path: Path) -> None:
    clips = find_clips(mini)
    assert len(clips) == len({clip.id for clip in clips}) == 24
    require_frames(clips, mini)
    with pytest.raises(UserError, match=r"(?s)24 faults found.*no file frames/source-0000/0000\.jpg"):
        require_frames(clips, tmp_path)
    with pytest.raises(UserError, match="found none of the annotation files"):
        find_clips(tmp_path)


@pytest.mark.parametrize("name", ["roberta", "vit"])
def test_pretraining_replaces_nothing_that_it_did_not_write(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mini(tmp_path / "data", seed=1, sizes=dict.fromkeys(SIZES, 2))
    kept = tmp_path / "encoders" / name / "pytorch_model.bin"
    kept.parent.mkdir(parents=True)
    kept.write_text("downloaded", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        pretrain_again(tmp_path / "encoders", tmp_path / "data")
    assert ended.value.code == 2
    assert f"{kept.parent}: exists, and is not from lr2ppo pretrain" in capsys.readouterr().err
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_pictures_that_change_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_mini(data, seed=1, sizes=dict.fromkeys(SIZES, 2))
    picture = data / read_clips(data / "pretrain_data.json", need="images")[0].images[0]

    def change_then_load(*arguments: Any) -> torch.Tensor:
        Image.new("RGB", (64, 64)).save(picture)
        return load_pictures(*arguments)

    load_pictures = pretrain.load_pictures
    monkeypatch.setattr(pretrain, "load_pictures", change_then_load)
    with pytest.raises(SystemExit):
        pretrain_again(tmp_path / "encoders", data)
    assert f"{data}: changed while it was read; run the same command again" in capsys.readouterr().err


def pretrain_again(out: Path, data: Path) -> None:
    main(["pretrain", "--out", str(out), "--data", str(data), "--reuse", "--batch=1", "--steps=1", "--device=cpu"])


def test_encoders_that_are_there_are_kept_but_not_those_of_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "encoders"
    write_mini(data, seed=1, sizes=dict.fromkeys(SIZES, 2))
    folders = [out / "roberta", out / "vit"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
    pretrain_again(out, data)
    record = {"data": captions_fingerprint(data), "pretraining": "first"}
    for folder in folders:
        write_json(folder / "pretrained_on.json", record)
    pretrain_again(out, data)
    assert capsys.readouterr().out == "already exists\n" * 2

    # Another picture, with the same annotations.
    picture = data / read_clips(data / "pretrain_data.json", need="images")[0].images[0]
    before = picture.read_bytes()
    picture.write_bytes(before + b"x")
    with pytest.raises(SystemExit) as ended:
        pretrain_again(out, data)
    assert (ended.value.code, f"{out}: found encoders of other data than {data}" in capsys.readouterr().err) == (
        2,
        True,
    )
    picture.write_bytes(before)

    (folders[1] / "pretrained_on.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit):
        pretrain_again(out, data)
    assert "pretrained_on.json is not JSON; remove this folder" in capsys.readouterr().err
    # Of another pretraining, which was stopped after its first encoder.
    write_json(folders[1] / "pretrained_on.json", record | {"pretraining": "second"})
    with pytest.raises(SystemExit):
        pretrain_again(out, data)
    # They are trained again, for which a batch of one picture is too small.
    assert "'contrast': nan" in capsys.readouterr().err

"""CLIP and SigLIP models score labels against frames as transformers does, and are rows of a comparison."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerFast, SiglipModel

from lr2ppo.cli import main
from lr2ppo.data import annotations
from lr2ppo.data.annotations import read_clips
from lr2ppo.data.features.layout import Sources
from lr2ppo.data.features.writer import FeatureWriter
from lr2ppo.data.frames import frames_fingerprint, read_image
from lr2ppo.data.mini import SIZES, write_mini
from lr2ppo.errors import UserError
from lr2ppo.evaluation import zero_shot
from lr2ppo.evaluation.zero_shot import ZeroShotScorer
from lr2ppo.tensors import read_tensors, write_tensors
from tests.conftest import REPOSITORY
from tests.helpers.zero_shot import SPECIAL, write_zero_shot

LABELS = ["boat", "a red car", "lamp"]
# Clips of each split.
SIZE = 4


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zero_shot(tmp_path_factory.mktemp("zero_shot") / request.param, request.param)


def draw_frames(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(count)]


def test_a_score_is_the_mean_logit_of_the_label_and_each_frame(folder: Path) -> None:
    scorer, frames = ZeroShotScorer.load(folder), draw_frames(2)
    scores = scorer(frames, LABELS)
    alone = torch.stack([scorer([frame], LABELS) for frame in frames])
    torch.testing.assert_close(scores, alone.mean(0), atol=1e-5, rtol=0)
    # A text's score does not depend on the texts beside it, which may be longer.
    torch.testing.assert_close(torch.stack([scorer(frames, [label])[0] for label in LABELS]), scores, atol=1e-5, rtol=0)
    assert len(set(scores.tolist())) == len(LABELS)


def test_scores_are_in_the_order_of_the_cosine_similarity_of_text_and_picture(folder: Path) -> None:
    scorer, (frame,) = ZeroShotScorer.load(folder), draw_frames(1)
    pixels = scorer.image_processor(images=[frame], return_tensors="pt")
    seen: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for name, part in (("text", scorer.model.text_model), ("image", scorer.model.vision_model)):
            part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.pooler_output}))
        scores = scorer([frame], LABELS)
        if hasattr(scorer.model, "text_projection"):
            seen["text"] = scorer.model.text_projection(seen["text"])
            seen["image"] = scorer.model.visual_projection(seen["image"])
    assert pixels["pixel_values"].shape == (1, 3, 32, 32)
    similarity = cosine_similarity(seen["text"], seen["image"])
    assert scores.argsort().tolist() == similarity.argsort().tolist()


def test_a_prompt_holds_the_label(folder: Path) -> None:
    frames = draw_frames(1)
    wanted = ZeroShotScorer.load(folder)(frames, ["a photo of boat"])
    torch.testing.assert_close(ZeroShotScorer.load(folder, "a photo of {label}")(frames, ["boat"]), wanted)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_fills_texts_as_its_own_config_says(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, side: str
) -> None:
    """SigLIP 2 has another filling token than its config's default, and reads it."""
    model = write_zero_shot(tmp_path / "model", "siglip")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(model / "tokenizer.json")), padding_side=side
    )
    tokenizer.pad_token = SPECIAL[0]
    tokenizer.save_pretrained(model)
    frames = draw_frames(1)
    reference = SiglipModel.from_pretrained(model, attn_implementation="eager").eval()
    texts = tokenizer(LABELS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    scorer = ZeroShotScorer.load(model)
    pixels = scorer.image_processor(images=frames, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        wanted = reference(input_ids=texts["input_ids"], pixel_values=pixels).logits_per_image[0]
    torch.testing.assert_close(scorer(frames, LABELS), wanted.double(), atol=1e-5, rtol=0)
    # Upper case is none to SigLIP, whatever the tokenizer's file says.
    torch.testing.assert_close(scorer(frames, [label.upper() for label in LABELS]), scorer(frames, LABELS))


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def change_json(file: str, **keys: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(content | keys), encoding="utf-8")

    return change


def edit_text(folder: Path, key: str, value: object) -> None:
    """Change the model's text config, and the weights of its tokens with it."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["text_config"][key] = value
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = read_tensors(folder / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    write_tensors(folder / "model.safetensors", tensors | {name: tensors[name][: content["text_config"]["vocab_size"]]})


def break_normalizer(folder: Path) -> None:
    """Let the tokenizers' library end in a panic."""
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    change_json("tokenizer.json", normalizer=normalizer)(folder)


def drop_tensor(folder: Path) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("vision_model.encoder")))
    write_tensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "found no model.safetensors, wanted the folder of"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "found no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be read by transformers"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: found a list, wanted a JSON object"),
        (change_json("config.json", quantization_config={"quant_method": "x"}), "found quantization_config"),
        (change_json("config.json", vision_config={"quantization_config": {}}), "found quantization_config"),
        (change_json("config.json", model_type="bert"), "found model_type 'bert', wanted clip or siglip"),
        (
            change_json(
                "preprocessor_config.json", image_processor_type="OneFormerImageProcessor", repo_path="/victim"
            ),
            "found image_processor_type 'OneFormerImageProcessor', wanted that of CLIP or SigLIP",
        ),
        (change_json("preprocessor_config.json", size="large"), "cannot be read by transformers"),
        (
            change_json("preprocessor_config.json", size={"height": 16, "width": 16}, do_center_crop=False),
            "prepares pictures of 16 x 16 pixels, its model takes 32 x 32",
        ),
        (drop_tensor, r"vision_model\.encoder.*: is missing"),
        (lambda folder: edit_text(folder, "vocab_size", 5), "found the token 10, wanted at most 4"),
        (lambda folder: edit_text(folder, "pad_token_id", -5), "found -5 as its pad token"),
        (lambda folder: edit_text(folder, "num_hidden_layers", 10**9), "fewer than its config has layers"),
        (lambda folder: edit_text(folder, "hidden_size", 2**20), "found shape"),
        (break_normalizer, "cannot be read by transformers"),
    ],
)
def test_a_folder_that_is_no_such_model_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(copy(folder, tmp_path / "model"))
    with pytest.raises(UserError, match=message):
        ZeroShotScorer.load(tmp_path / "model")


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """A set of two rows of a model as it is: nothing is trained."""
    write_mini(tmp_path / "data", seed=1, sizes=dict.fromkeys(SIZES, SIZE))
    rows = {
        "as it is": {"zero_shot": str(folder)},
        "with a prompt": {"zero_shot": str(folder), "prompt": "a photo of {label}"},
    }
    tree: dict[str, Any] = {"stage": "compare", "preset": str(REPOSITORY / "configs" / "mini"), "split": "test"}
    tree |= {"seeds": [1], "logs": str(tmp_path / "logs"), "against": "as it is", "rows": rows}
    tree |= {"settings": ["device=cpu"], "data": {"mini": [f"data.root={tmp_path / 'data'}"]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path / "two.yaml"


def test_a_comparison_shows_a_model_that_is_not_trained_and_keeps_its_scores(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["compare", str(file)])
    printed = capsys.readouterr().out
    assert f"as it is: {folder}, not trained" in printed.replace("\n", " ")

    # The kept scores are read again, and only by what they depend on.
    table = file.parent / "logs" / "two" / "table.csv"
    before = table.read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(zero_shot, "load_scorer", lambda *_: pytest.fail("scored again"))
        main(["compare", str(file)])
    assert table.read_text(encoding="utf-8") == before
    # Of one frame, scores are others, whatever the order.
    main(["compare", str(file), "data.frames=1"])
    assert len(list((file.parent / "logs" / "zero_shot").iterdir())) == 2 * 2


@pytest.mark.parametrize("damaged", ["{}", "[1]", "no", '{"scores": [[1.0]], "weights": 1}'])
def test_kept_scores_that_are_damaged_are_made_again(file: Path, damaged: str) -> None:
    main(["compare", str(file)])
    table = file.parent / "logs" / "two" / "table.csv"
    before = table.read_text(encoding="utf-8")
    kept = list((file.parent / "logs" / "zero_shot").iterdir())
    for path in kept:
        path.write_text(damaged, encoding="utf-8")
    main(["compare", str(file)])
    assert table.read_text(encoding="utf-8") == before
    assert all(len(json.loads(path.read_text(encoding="utf-8"))["scores"]) == SIZE for path in kept)


def refused(file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert ended.value.code == 2
    assert not (file.parent / "logs" / "two").exists()
    return capsys.readouterr().err


def test_scores_that_are_not_finite_are_no_row(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy(folder, tmp_path / "model")
    tensors = read_tensors(model / "model.safetensors")
    write_tensors(model / "model.safetensors", tensors | {"logit_scale": torch.full_like(tensors["logit_scale"], 1e3)})
    file.write_text(file.read_text(encoding="utf-8").replace(str(folder), str(model)), encoding="utf-8")
    message = refused(file, capsys)
    assert f"{model}: {SIZE} faults found" in message
    assert "clip test-0000: its scores are not all finite" in message
    assert not list((tmp_path / "logs" / "zero_shot").glob("*"))


def test_frames_that_change_while_they_are_scored_are_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = next((file.parent / "data" / "frames").glob("test-*/*"))

    def change_another(path: Path) -> Image.Image:
        Image.new("RGB", (64, 64)).save(frame)
        return read_image(path)

    monkeypatch.setattr(zero_shot, "read_image", change_another)
    assert "changed while clips were scored" in refused(file, capsys)
    assert not list((file.parent / "logs" / "zero_shot").glob("*"))


def test_frames_that_changed_since_extraction_are_refused_beside_trained_rows(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = file.parent / "data"
    write_features(data)
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    tree["rows"]["trained"] = {"stages": ["pointwise"], "settings": ["train.epochs=1", "data.workers=0"]}
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    main(["compare", str(file), "seeds=[2]"])
    shutil.rmtree(file.parent / "logs")
    Image.new("RGB", (64, 64)).save(next((data / "frames").glob("test-0001/*")))
    message = refused(file, capsys)
    assert "clip test-0001: its frames have changed since its features were made" in message


def write_features(data: Path) -> None:
    """Write random features of all clips, which name the frames that there are now."""
    rng = np.random.default_rng(0)
    files = (annotations.SOURCE_TRAIN, annotations.VALIDATION, annotations.TEST)
    with FeatureWriter(data / "clean_feat.h5", {"tokens_per_frame": 1}) as store:
        for clip in (clip for name in files for clip in read_clips(data / name)):
            text = [rng.normal(size=(2, 16)).astype(np.float32) for _ in clip.labels]
            frames = rng.normal(size=(len(clip.images), 16)).astype(np.float32)
            sources = Sources(clip.text_fingerprint(), frames_fingerprint(clip, data), clip.images_fingerprint())
            store.write(clip.id, text, frames, sources=sources)


def test_clips_without_frames_are_refused_as_all_their_labels_would_be_equal(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file.parent / "data" / "test_data.json"
    clips = json.loads(path.read_text(encoding="utf-8"))
    clips[1]["image"] = []
    path.write_text(json.dumps(clips), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert ended.value.code == 2
    assert f"clip {clips[1]['id']} has no frames" in capsys.readouterr().err


def test_weights_that_a_config_names_elsewhere_are_not_read(folder: Path, tmp_path: Path) -> None:
    wanted = ZeroShotScorer.load(folder)(draw_frames(1), LABELS)
    model = copy(folder, tmp_path / "model")
    index = {"metadata": {}, "weight_map": dict.fromkeys(read_tensors(folder / "model.safetensors"), "../victim/w")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    change_json("config.json", transformers_weights="model.safetensors.index.json")(model)
    # Nor is another config that it names.
    change_json("config.json", configuration_files=["config.1.0.json"])(model)
    (model / "config.1.0.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    torch.testing.assert_close(ZeroShotScorer.load(model)(draw_frames(1), LABELS), wanted)


def test_a_model_computes_in_32_bits_whatever_its_config_names(folder: Path, tmp_path: Path) -> None:
    wanted = ZeroShotScorer.load(folder)(draw_frames(1), LABELS)
    model = copy(folder, tmp_path / "model")
    change_json("config.json", dtype="bfloat16", torch_dtype="bfloat16")(model)
    assert ZeroShotScorer.load(model)(draw_frames(1), LABELS).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)

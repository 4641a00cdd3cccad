"""The registry against the facts it was made from, and its look-ups."""

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import pytest

from mnv2_keras import registry
from mnv2_keras.registry import CheckpointRecord, get_checkpoint, imagenet_checkpoint, list_checkpoints, register_checkpoint

ALPHAS_AND_RESOLUTIONS = {(1.4, 224), (1.3, 224)} | {
    (alpha, pixels) for alpha in (1.0, 0.75, 0.5, 0.35) for pixels in (224, 192, 160, 128, 96)
}
EXAMPLE = CheckpointRecord(name="mine", task="classification", url="https://example.org/mine.tgz")


@pytest.fixture(autouse=True)
def only_shipped(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


def floats() -> list[CheckpointRecord]:
    return [record for record in list_checkpoints("classification") if not record.quantized]


def test_counts():
    quantized = [record for record in list_checkpoints("classification") if record.quantized]
    assert {(record.alpha, record.resolution) for record in floats()} == ALPHAS_AND_RESOLUTIONS
    assert {(record.alpha, record.resolution) for record in quantized} == ALPHAS_AND_RESOLUTIONS
    assert [len(records) for records in (floats(), quantized)] == [22, 22]
    assert len(list_checkpoints("detection")) == 2
    assert len(list_checkpoints("segmentation")) == 6
    assert len(list_checkpoints()) == 52


def test_schema():
    """Every record has what its task needs, names are unique, and the archive in the cache is the publisher's file."""
    records = list_checkpoints()
    assert len({record.name for record in records}) == len({record.url for record in records}) == len(records)
    assert len({record.sha256 for record in records if record.sha256}) == 22 + 3
    for record in records:
        assert record.archive == record.file_name == record.url.rpartition("/")[2]
        assert record.archive in (f"{record.name}.tgz", f"{record.name}.tar.gz")
        assert record.licence == "Apache-2.0"
        assert all((record.preprocessing, record.labels, record.source))
        assert 0.35 <= record.alpha <= 1.4
        figures = asdict(record)
        filled = {field for field in ("top_1", "top_5", "coco_ap", "miou") if figures[field] is not None}
        if record.task == "classification":
            assert record.classes == 1001
            assert filled == (set() if record.quantized else {"top_1", "top_5"})
            assert (record.sha256 is None) == record.quantized
        else:
            assert filled <= {"detection": {"coco_ap"}, "segmentation": {"miou"}}[record.task]
        assert (record.multiply_adds_m is not None) == (record.parameters_m is not None) == (record in floats())


def test_float_classifiers_have_the_published_hashes_and_sizes(testdata):
    text = (testdata / "facts" / "weights.md").read_text()
    published = re.findall(r"^([\d.]+)_(\d+) +([0-9a-f]{64})(?: +(\d+) bytes)?$", text, re.M)
    assert len(published) == 22
    for alpha, pixels, sha256, size in published:
        record = get_checkpoint(f"mobilenet_v2_{alpha}_{pixels}")
        assert (record.alpha, record.resolution) == (float(alpha), int(pixels))
        assert record.sha256 == sha256
        assert record.size == (int(size) if size else None)
        assert record.url.endswith(f"googleapis.com/mobilenet_v2/checkpoints/mobilenet_v2_{alpha}_{pixels}.tgz")


def test_float_classifiers_have_the_published_figures(testdata):
    text = (testdata / "facts" / "tf_slim.md").read_text()
    rows = re.findall(r"^([\d.]+)_([\d /]+) \| ([\d /]+) \| ([\d.]+) \| ([\d. /]+) \| ([\d. /]+)$", text, re.M)
    seen = set()
    for alpha, *columns in rows:
        pixels, macs, top_1, top_5 = (columns[i].split(" / ") for i in (0, 1, 3, 4))
        for row in zip(pixels, macs, top_1, top_5, strict=True):
            record = imagenet_checkpoint(float(alpha), int(row[0]))
            assert (record.alpha, record.resolution) == (float(alpha), int(row[0]))
            assert (record.multiply_adds_m, record.top_1, record.top_5) == (int(row[1]), float(row[2]), float(row[3]))
            assert record.parameters_m == float(columns[2])
            seen.add(record.name)
    assert len(seen) == 22


@pytest.mark.parametrize(
    ("name", "start", "end", "size"),
    [
        ("mobilenet_v2_1.4_224", "a20d0c8d", "fce85e0", 135977516),
        ("mobilenet_v2_1.0_224", "318084bc", "5ed49dc", 78306834),
        ("mobilenet_v2_0.75_160", "904d1a1f", "ada36bc", None),
        ("mobilenet_v2_0.35_96", "282996bc", "f843353", None),
        ("ssdlite_mobilenet_v2_coco_2018_05_09", "542445cc", "c10c8b2", 51025348),
        ("ssd_mobilenet_v2_coco_2018_03_29", "b9380178", "cb5adc", 187925923),
        ("deeplabv3_mnv2_pascal_train_aug_2018_01_29", "cd506941", "5fb48", 23882985),
    ],
)
def test_hashes_by_their_ends(name, start, end, size):
    record = get_checkpoint(name)
    assert record.sha256.startswith(start)
    assert record.sha256.endswith(end)
    assert record.size == size


def test_detection_and_segmentation_records():
    lite = get_checkpoint("ssdlite_mobilenet_v2_coco_2018_05_09")
    assert lite.url == "http://download.tensorflow.org/models/object_detection/ssdlite_mobilenet_v2_coco_2018_05_09.tar.gz"
    assert (lite.resolution, lite.classes, lite.coco_ap) == (300, 90, 22.0)
    half = get_checkpoint("deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01")
    assert half.url == "http://download.tensorflow.org/models/deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01.tar.gz"
    assert (half.alpha, half.resolution, half.classes, half.sha256) == (0.5, 513, 21, None)
    assert get_checkpoint("deeplabv3_mnv2_pascal_train_aug_2018_01_29").miou == 75.32
    assert get_checkpoint("deeplabv3_mnv2_ade20k_train_2018_12_03").classes == 151
    assert get_checkpoint("deeplabv3_mnv2_cityscapes_train_2018_02_05").classes == 19


def test_quantized_names_hold_the_percentage():
    record = get_checkpoint("quantized_v2_192_35")
    assert (record.alpha, record.resolution, record.quantized, record.sha256) == (0.35, 192, True, None)
    assert record.url == "https://storage.googleapis.com/mobilenet_v2/checkpoints/quantized_v2_192_35.tgz"
    assert get_checkpoint("quantized_v2_224_140").alpha == 1.4


def test_list_by_task_alpha_and_resolution():
    names = [record.name for record in list_checkpoints("classification", alpha=0.7 + 0.05, resolution=96)]
    assert names == ["mobilenet_v2_0.75_96", "quantized_v2_96_75"]
    assert {record.task for record in list_checkpoints(alpha=1)} == set(registry.TASKS)
    assert [record.name for record in list_checkpoints(resolution=(1025, 2049))] == ["deeplabv3_mnv2_cityscapes_train_2018_02_05"]
    assert list_checkpoints(alpha=0.6) == []
    with pytest.raises(ValueError, match="no task 'classify': choose one of classification, detection, segmentation"):
        list_checkpoints("classify")


@pytest.mark.parametrize("alpha", [0.35, 0.1 + 0.25, 35 / 100, 0.3499999940395355])
def test_alpha_matches_however_it_was_computed(alpha):
    """The last one is 0.35 in float32."""
    assert imagenet_checkpoint(alpha, 96).name == "mobilenet_v2_0.35_96"


def test_imagenet_checkpoint():
    assert imagenet_checkpoint(1).name == imagenet_checkpoint(1.0).name == "mobilenet_v2_1.0_224"
    assert imagenet_checkpoint(0.5, 160).name == "mobilenet_v2_0.5_160"
    assert imagenet_checkpoint(0.5, 100).name == imagenet_checkpoint(0.5, None).name == "mobilenet_v2_0.5_224"
    assert imagenet_checkpoint(1.4, 96).name == "mobilenet_v2_1.4_224"


@pytest.mark.parametrize("alpha", [0.6, 2, -1, float("nan"), float("inf")])
def test_imagenet_checkpoint_names_the_published_alphas(alpha):
    with pytest.raises(ValueError, match=r"alpha=.*: choose one of 0\.35, 0\.5, 0\.75, 1\.0, 1\.3, 1\.4"):
        imagenet_checkpoint(alpha)


def test_alpha_that_is_no_number():
    with pytest.raises(ValueError, match="alpha='1' is not a number"):
        imagenet_checkpoint("1")


def test_unknown_name_suggests_the_closest():
    with pytest.raises(ValueError, match=r"no checkpoint 'mobilenet_v2_1_224': did you mean .*mobilenet_v2_1\.0_224"):
        get_checkpoint("mobilenet_v2_1_224")
    with pytest.raises(ValueError, match=r"no checkpoint '\?': list_checkpoints\(\)"):
        get_checkpoint("?")


def test_register_a_record_of_ones_own():
    register_checkpoint(EXAMPLE)
    assert get_checkpoint("mine") is list_checkpoints()[-1] is EXAMPLE
    register_checkpoint(replace(EXAMPLE, alpha=0.1))
    assert get_checkpoint("mine").alpha == 0.1
    assert imagenet_checkpoint(1.0).name == "mobilenet_v2_1.0_224"
    with pytest.raises(ValueError, match=r"No ImageNet checkpoint was published for alpha=0\.1"):
        imagenet_checkpoint(0.1)


def test_a_shipped_record_cannot_be_replaced_or_changed():
    before = get_checkpoint("mobilenet_v2_1.0_224")
    with pytest.raises(ValueError, match="comes with mnv2_keras"):
        register_checkpoint(replace(EXAMPLE, name="mobilenet_v2_1.0_224", sha256="0" * 64))
    with pytest.raises(FrozenInstanceError):
        before.sha256 = None
    assert get_checkpoint("mobilenet_v2_1.0_224") is before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../escape"),
        ("name", "a/b"),
        ("name", ""),
        ("name", ".hidden"),
        ("task", "pose"),
        ("url", "ftp://example.org/a.tgz"),
        ("url", "/data/a.tgz"),
        ("url", "https://example.org/"),
        ("sha256", "abc"),
        ("sha256", "A" * 64),
        ("size", 0),
        ("alpha", 0.0),
        ("alpha", float("nan")),
    ],
)
def test_a_record_says_which_field_is_wrong(field, value):
    with pytest.raises(ValueError, match=f"has {field}=.*: expected"):
        replace(EXAMPLE, **{field: value})


@pytest.mark.parametrize(
    ("url", "archive"),
    [
        ("https://example.org/other.tar.gz", "mine.tar.gz"),
        ("file:///data/mobilenet_v2_1.0_224.tgz?x=1", "mine.tgz"),
        ("https://example.org/v1.0_224", "mine"),
    ],
)
def test_the_cache_names_an_archive_by_its_record(url, archive):
    """So that a record of one's own never lands on the file of a shipped one."""
    assert replace(EXAMPLE, url=url).archive == archive


def test_needs_only_the_standard_library():
    code = (
        "import sys; from mnv2_keras import registry; registry.list_checkpoints()\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'rich', 'filelock'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(registry.__file__).parents[1])

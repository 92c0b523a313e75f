"""Folders of pictures of every kind."""

import logging
import os
import pickle
import socket
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sslmodules.datamodules import ImageFolder
from sslmodules.datamodules.pictures import common_size, list_pictures, read_picture
from sslmodules.evaluation.cache import in_order


def picture(path, size=(16, 12), mode="RGB", value=200, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    color = value if mode in ("1", "L", "P", "I;16") else (value,) * len(mode)
    Image.new(mode, size, color).save(path, **options)
    return path


def numbered(root, count, **options):
    for number in range(count):
        picture(root / f"{number}.png", mode="L", value=number, **options)
    return root


def values(loader):
    return [value for images in loader for value in images[:, 0, 0, 0].tolist()]


def test_a_nested_folder_of_mixed_formats_becomes_uint8_of_one_size(tmp_path):
    picture(tmp_path / "a" / "grey.png", (40, 30), "L")
    picture(tmp_path / "a" / "b" / "palette.png", (30, 40), "P", value=0)
    picture(tmp_path / "rgba.webp", (50, 50), "RGBA", lossless=True)
    picture(tmp_path / "a" / "cmyk.jpg", (64, 48), "CMYK", value=0)
    picture(tmp_path / "z" / "flat.BMP", (33, 44))
    picture(tmp_path / "z" / "photo.jpeg", (400, 300))
    picture(tmp_path / "z" / "bits.png", (20, 20), "1", value=1)
    (tmp_path / "notes.txt").write_text("no picture")
    data = ImageFolder(str(tmp_path), size=24, batch_size=7, val_fraction=0, num_workers=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.dtype == torch.uint8
    assert batch.shape == (7, 3, 24, 24)
    assert len(data.files("train")) == 7
    grey = next(iter(ImageFolder(str(tmp_path), size=24, mode="L", batch_size=7, val_fraction=0).train_dataloader()))
    assert grey.shape == (7, 1, 24, 24)


def test_files_come_in_natural_order_and_hidden_ones_do_not(tmp_path):
    for name in ("10.png", "2.png", "sub10/1.png", "sub2/1.png", ".hidden.png", ".cache/1.png", "._2.png"):
        picture(tmp_path / name)
    names = [os.path.relpath(file, tmp_path) for file in list_pictures(str(tmp_path))]
    assert names == ["2.png", "10.png", "sub2/1.png", "sub10/1.png"]


def test_links_to_folders_are_followed_once(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png")
    root = tmp_path / "root"
    picture(root / "2.png")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert len(list_pictures(str(root))) == 2


def test_pipes_sockets_and_devices_are_no_pictures_and_a_broken_link_is_an_error(tmp_path):
    files = numbered(tmp_path, 3)
    os.mkfifo(files / "pipe.png")
    (files / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind(str(files / "socket.png"))
    assert list_pictures(str(files)) == [str(files / f"{number}.png") for number in range(3)]
    (files / "gone.png").symlink_to(files / "removed.png")
    with pytest.raises(ValueError, match="gone.png cannot be read"):
        ImageFolder(str(files), num_workers=0).setup("fit")


def test_exif_turns_the_picture_upright(tmp_path):
    upright = Image.fromarray(np.arange(12 * 16, dtype=np.uint8).reshape(12, 16))
    back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    back |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    for orientation, method in back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        upright.transpose(Image.Transpose[method]).save(path, exif=exif)
        assert torch.equal(read_picture(str(path), (12, 16), "L")[0], torch.from_numpy(np.array(upright))), orientation
        assert common_size([str(path)]) == (12, 16)


def test_sixteen_bits_a_pixel_are_scaled_and_not_cut_off(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(str(tmp_path / "deep.png"), (4, 4), "L").unique().tolist() == [0x80]


def test_the_centre_is_kept_and_the_shorter_side_fits(tmp_path):
    stripes = np.zeros((10, 30), dtype=np.uint8)
    stripes[:, 10:20] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert read_picture(str(tmp_path / "stripes.png"), (10, 10), "L").unique().tolist() == [255]
    assert read_picture(str(tmp_path / "stripes.png"), (5, 5), "L")[0, :, 1:-1].unique().tolist() == [255]


def test_a_big_jpeg_decoded_small_is_the_picture_it_would_be(tmp_path):
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)[None].repeat(1200, 0)
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "big.jpg", quality=95)
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "big.png")
    small = [read_picture(str(tmp_path / name), (32, 32)).float() for name in ("big.jpg", "big.png")]
    assert (small[0] - small[1]).abs().max() < 4


@pytest.mark.parametrize(("odd", "expected"), [(False, (12, 16)), (True, (224, 224))])
def test_without_a_size_the_pictures_decide(tmp_path, odd, expected):
    numbered(tmp_path, 5)
    if odd:
        picture(tmp_path / "9.png", (20, 20))
    batch = next(iter(ImageFolder(str(tmp_path), batch_size=4, num_workers=0).train_dataloader()))
    assert tuple(batch.shape[2:]) == expected


def test_a_picture_of_another_size_that_was_not_looked_at_is_resized(tmp_path):
    numbered(tmp_path, 130)
    looked_at = set(np.linspace(0, 129, 64).astype(int).tolist())
    other = next(place for place in range(130) if place not in looked_at)
    picture(tmp_path / f"{other}.png", (50, 40))
    data = ImageFolder(str(tmp_path), batch_size=130, val_fraction=0, num_workers=0)
    assert next(iter(data.train_dataloader())).shape == (130, 3, 12, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_named(tmp_path, workers):
    numbered(tmp_path, 7)
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    data = ImageFolder(str(tmp_path), batch_size=7, val_fraction=0, num_workers=workers)
    with pytest.raises(ValueError, match=r'3\.png cannot be read as a picture.*on_error="skip"'):
        next(iter(data.train_dataloader()))


def test_a_file_that_is_no_picture_is_named_before_training(tmp_path):
    numbered(tmp_path, 3)
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        ImageFolder(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_prediction_leaves_bad_files_out_and_counts_each_once_over_all_workers(tmp_path, workers):
    numbered(tmp_path, 8)
    for name in ("3.png", "4.png", "7.png"):
        (tmp_path / name).write_text("no picture")
    data = ImageFolder(str(tmp_path), batch_size=2, val_fraction=0, num_workers=workers, on_error="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert values(data.predict_dataloader()) == [0, 1, 2, 5, 6]
    assert data.skipped == 3
    if workers == 0:
        named = [str(warning.message) for warning in caught if "cannot be read" in str(warning.message)]
        assert len(named) == 3
        assert all(name in text for name, text in zip(("3.png", "4.png", "7.png"), named, strict=True))
    assert len([value for batch in data.train_dataloader() for value in batch]) == 8  # the next ones take their places
    assert data.skipped == 3


def test_a_batch_of_bad_files_alone_holds_another_that_counts_as_left_out(tmp_path):
    numbered(tmp_path, 6)
    for name in ("2.png", "3.png"):
        (tmp_path / name).write_text("no picture")
    data = ImageFolder(str(tmp_path), batch_size=2, val_fraction=0, num_workers=0, on_error="skip")
    with pytest.warns(UserWarning, match="it is left out"):
        assert [values([batch]) for batch in data.predict_dataloader()] == [[0, 1], [4], [4, 5]]
    assert data.split("predict").left_out(range(6)).tolist() == [False, False, True, True, False, False]


def test_in_validation_a_bad_file_has_no_label_and_in_training_the_next_has_its_own(tmp_path):
    for kind in ("cat", "dog"):
        numbered(tmp_path / kind, 4)
    (tmp_path / "cat" / "3.png").write_text("no picture")  # the next is a dog
    data = ImageFolder(
        str(tmp_path), str(tmp_path), labels=True, batch_size=8, val_fraction=0, num_workers=0, on_error="skip"
    )
    with pytest.warns(UserWarning, match="the next file takes its place"):
        ((images, labels),) = data.val_dataloader()
    assert labels.tolist() == [0, 0, 0, -1, 1, 1, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    with pytest.warns(UserWarning, match="the next file takes its place"):
        ((_, labels),) = data.train_dataloader()
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 1, 1]
    ((_, labels),) = in_order(data.train_dataloader())  # to evaluate on
    assert labels.tolist() == [0, 0, 0, -1, 1, 1, 1, 1]


def test_whole_pictures_come_one_by_one_for_a_module_that_asks_for_them(tmp_path):
    sizes = [(30, 20), (12, 48), (16, 16)]
    for i, size in enumerate(sizes):
        picture(tmp_path / f"{i}.png", size)
    found = {}
    for reads, size in (("squares", 8), ("whole", (8, 10)), ("full size", None), ("full size", 10)):
        data = ImageFolder(str(tmp_path), size=size, batch_size=3, num_workers=0)
        data.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(predicts_on=reads), num_devices=1, world_size=1, predicting=True
        )
        found[reads, size] = [tuple(batch.shape) for batch in data.predict_dataloader()]
    assert found["squares", 8] == [(3, 3, 8, 8)]
    assert found["whole", (8, 10)] == [(1, 3, 8, 12), (1, 3, 32, 8), (1, 3, 8, 8)]
    assert found["full size", None] == [(1, 3, h, w) for w, h in sizes]
    assert found["full size", 10] == [(1, 3, 10, 15), (1, 3, 40, 10), (1, 3, 10, 10)]


def test_more_processes_than_files_to_predict_on_are_refused_in_one_sentence(tmp_path):
    data = ImageFolder(str(numbered(tmp_path, 2)), batch_size=3, num_workers=0)
    data.trainer = SimpleNamespace(lightning_module=None, num_devices=3, world_size=3, predicting=True)
    with pytest.raises(ValueError, match=r"there are 3 processes and 2 to predict on.* \(--trainer\.devices 2\)"):
        data.predict_dataloader()


def test_the_end_of_a_run_says_which_files_could_not_be_read(tmp_path, capsys):
    numbered(tmp_path, 14)
    for number in range(12):
        (tmp_path / f"{number}.png").write_text("no picture")
    data = ImageFolder(str(tmp_path), batch_size=7, val_fraction=0, num_workers=0, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values(data.predict_dataloader()) == [12, 12, 13]
    data.teardown("predict")
    assert f"12 files could not be read, left out: {tmp_path}/0.png, " in (said := capsys.readouterr().out)
    assert said.endswith("/9.png and 2 more\n")


def test_a_folder_of_corrupt_files_only_is_an_error_also_when_skipping(tmp_path):
    (tmp_path / "1.png").write_text("no picture")
    data = ImageFolder(str(tmp_path), on_error="skip", batch_size=1, val_fraction=0, num_workers=0)
    with pytest.warns(UserWarning, match="takes its place"), pytest.raises(ValueError, match="none of the 1 files"):
        next(iter(data.train_dataloader()))


def test_missing_and_empty_folders_are_refused_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root='.*nowhere' is no folder"):
        ImageFolder(str(tmp_path / "nowhere"))
    picture(tmp_path / "root" / "1.png")
    with pytest.raises(FileNotFoundError, match="val_root="):
        ImageFolder(str(tmp_path / "root"), val_root=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    data = ImageFolder(str(tmp_path / "empty"))
    for attempt in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(ValueError, match="holds no picture"):
            attempt()


def test_other_endings_can_be_named(tmp_path):
    picture(tmp_path / "1.scan", format="png")
    with pytest.raises(ValueError, match="extensions="):
        ImageFolder(str(tmp_path)).prepare_data()
    assert len(ImageFolder(str(tmp_path), extensions=[".SCAN"], val_fraction=0).files("train")) == 1


def test_a_part_is_held_out_and_predict_takes_all_in_order(tmp_path):
    data = ImageFolder(str(numbered(tmp_path, 20)), batch_size=4, num_workers=0)
    train, val = data.files("train"), data.files("val")
    assert len(val) == 2
    assert sorted(train + val) == sorted(data.files("predict"))
    assert values(data.predict_dataloader()) == list(range(20))
    assert values(data.test_dataloader()) == values(data.val_dataloader())
    numbered(tmp_path / "other", 3)
    other = ImageFolder(str(tmp_path), test_root=str(tmp_path / "other"), batch_size=4, num_workers=0)
    assert values(other.predict_dataloader()) == values(other.test_dataloader()) == [0, 1, 2]
    assert [os.path.basename(file) for file in other.files("predict")] == ["0.png", "1.png", "2.png"]


@pytest.fixture
def classes(tmp_path):
    for split, size in (("train", 10), ("val", 3)):
        for name, value in (("cat", 10), ("dog", 20)):
            for number in range(size):
                picture(tmp_path / split / name / "deeper" / f"{number}.png", mode="L", value=value)
    return tmp_path


def test_the_first_folder_below_root_is_the_class(classes):
    data = ImageFolder(str(classes / "train"), str(classes / "val"), labels=True, batch_size=20, num_workers=0)
    assert data.num_classes == 2
    assert data.classes == ["cat", "dog"]
    images, labels = next(iter(data.train_dataloader()))
    assert images[:, 0, 0, 0].tolist() == [[10, 20][label] for label in labels.tolist()]
    assert labels.bincount().tolist() == [10, 10]
    assert next(iter(data.val_dataloader()))[1].tolist() == [0, 0, 0, 1, 1, 1]
    assert ImageFolder(str(classes)).num_classes is None


def test_label_fractions_of_a_folder(classes):
    options = {"labels": True, "val_fraction": 0.2, "label_fraction": 0.25, "num_workers": 0, "batch_size": 4}
    data = ImageFolder(str(classes / "train"), **options)
    assert len(data.files("val")) == 4
    assert len(data.files("train")) == 16
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert [(labels == label).sum().item() for label in (-1, 0, 1)] == [12, 2, 2]
    assert len(ImageFolder(str(classes / "train"), unlabeled="drop", **options).files("train")) == 4


def test_splits_are_not_taken_for_classes(classes):
    with pytest.raises(ValueError, match=r"look like splits .*root='.*train' and val_root='.*val'"):
        ImageFolder(str(classes), labels=True).prepare_data()


def test_classes_unknown_to_training_are_refused(classes):
    picture(classes / "val" / "horse" / "1.png")
    with pytest.raises(ValueError, match=r"no class of root=.*: horse; expected only cat, dog"):
        ImageFolder(str(classes / "train"), str(classes / "val"), labels=True).prepare_data()


def test_a_picture_outside_the_class_folders_is_refused(classes):
    picture(classes / "train" / "loose.png")
    with pytest.raises(ValueError, match=r"'loose\.png' lies in no such folder"):
        ImageFolder(str(classes / "train"), labels=True).prepare_data()


def test_labeled_pictures_beside_unlabeled_ones_ride_along_and_a_part_of_each_class_is_held_out(classes, tmp_path):
    numbered(tmp_path / "photos", 14)
    data = ImageFolder(
        str(tmp_path / "photos"),
        labeled_root=str(classes / "train"),
        size=8,
        val_fraction=0.2,
        batch_size=7,
        num_workers=0,
    )
    data.prepare_data()
    assert data.classes == ["cat", "dog"]
    assert data.num_classes == 2
    assert [len(data.files(split)) for split in ("train", "labeled", "val", "test", "predict")] == [14, 16, 4, 4, 14]
    assert not set(data.files("labeled")) & set(data.files("val"))
    for batch in data.train_dataloader():
        assert batch["image"].shape == batch["labeled_image"].shape == (7, 3, 8, 8)
        assert batch["labeled_image"][:, 0, 0, 0].tolist() == [[10, 20][label] for label in batch["labeled_label"]]
    labels = next(iter(data.val_dataloader()))[1]
    assert labels.tolist() == [0, 0, 1, 1]
    assert next(iter(data.predict_dataloader())).shape == (7, 3, 8, 8)


def test_labeled_pictures_with_a_val_root_are_all_for_training_and_may_be_few(classes, tmp_path):
    roots = {"labeled_root": str(classes / "train"), "val_root": str(classes / "val")}
    data = ImageFolder(str(numbered(tmp_path / "photos", 4)), **roots, label_fraction=0.1, size=8, num_workers=0)
    assert [len(data.files(split)) for split in ("train", "labeled", "val")] == [4, 2, 6]
    picture(classes / "val" / "horse" / "1.png")
    with pytest.raises(ValueError, match=r"val_root=.*no class of labeled_root=.*: horse; expected only cat, dog"):
        ImageFolder(str(tmp_path / "photos"), **roots).prepare_data()


def test_labels_of_root_and_a_labeled_root_are_refused_together(classes):
    with pytest.raises(ValueError, match="labels=True takes classes from the folders of root, and labeled_root"):
        ImageFolder(str(classes / "val"), labeled_root=str(classes / "train"), labels=True)


def test_it_travels_to_spawned_processes_and_its_hyperparameters_are_plain(tmp_path, caplog):
    data = ImageFolder(numbered(tmp_path, 4), batch_size=2)
    assert data.hparams.root == str(tmp_path)
    data.setup("fit")
    with caplog.at_level(logging.ERROR):
        copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.split("train")[1], data.split("train")[1])

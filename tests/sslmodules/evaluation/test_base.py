"""What classifiers answer, and the names that they give."""

import pytest
import torch
from runs import images, same_bits, snapshot, trainer
from torchvision.transforms.functional import to_pil_image

import sslmodules
from sslmodules import FineTune, LinearProbe, SemanticSegmentation
from sslmodules.datamodules import LabeledDataModule

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}
NAMES = ["cat", "dog", "emu", "fox"]


def named(count=32):
    data = LabeledDataModule(images(count), images(count, seed=1), batch_size=8)
    data.classes = NAMES
    return data


def test_names_of_the_classes_come_from_the_data_and_stay_in_the_checkpoint(tmp_path):
    module = LinearProbe(**TINY, learning_rates=[0.1])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=named())
    run.save_checkpoint(tmp_path / "probe.ckpt")
    found = sslmodules.load(tmp_path / "probe.ckpt")
    assert found.class_names == found.names() == NAMES
    with pytest.raises(ValueError, match="num_classes is 3, but class_names are 4"):
        LinearProbe(**TINY, class_names=NAMES, num_classes=3)


def test_names_of_other_data_do_not_rename_the_classes(tmp_path):
    module = LinearProbe(**TINY, learning_rates=[0.1], class_names=["1", "2", "3", "4"])
    trainer(tmp_path).predict(module, datamodule=named())
    assert module.class_names == ["1", "2", "3", "4"]
    assert LinearProbe(**TINY, num_classes=2).names() == ["0", "1"]


def test_pictures_are_classified_in_eval_mode_and_the_module_stays_as_it_was():
    torch.manual_seed(0)
    module = FineTune(**TINY, class_names=NAMES).train()
    before, modes = snapshot(module), [m.training for m in module.modules()]
    x = images(6)[:][0]
    answers = module.classify(x, k=2)
    assert same_bits(before, snapshot(module))
    assert modes == [m.training for m in module.modules()]
    module.eval()
    for answer, logits in zip(answers, module.logits(x), strict=True):
        best = logits.softmax(0).topk(2)
        assert [a.name for a in answer] == [NAMES[i] for i in best.indices.tolist()]
        assert [a.probability for a in answer] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert [len(answer) for answer in module.classify(x[:2], k=9)] == [4, 4]


def test_files_and_arrays_are_classified_as_the_tensors_that_they_hold(tmp_path):
    torch.manual_seed(0)
    module = FineTune(**TINY, class_names=NAMES)
    x = images(3)[:][0]
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, x, strict=True):
        to_pil_image(image).save(file)
    answers = module.classify(x)
    for pictures in (files, [image.permute(1, 2, 0).numpy() for image in x], [to_pil_image(image) for image in x]):
        assert [a.name for [a, *_] in module.classify(pictures, batch_size=2)] == [a.name for [a, *_] in answers]
    assert [a.name for a in module.classify(files[2])[0]] == [a.name for a in answers[2]]


def test_several_classes_of_an_image_have_probabilities_of_their_own():
    module = FineTune(**TINY, class_names=NAMES, multi_label=True).eval()
    module.heads[0].bias.data = torch.tensor([4.0, 4.0, -4.0, -4.0])
    [answer] = module.classify(images(1)[:][0])
    assert [a.probability > 0.9 for a in answer] == [True, True, False, False]


def test_an_image_as_a_whole_has_no_class_where_its_places_have():
    with pytest.raises(NotImplementedError, match="says something of places in an image and not of the whole"):
        SemanticSegmentation(**TINY, num_classes=2).classify(images(1)[:][0])

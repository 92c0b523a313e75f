"""From an empty folder to embeddings of one's own pictures."""

import numpy as np
from flowers import flowers

SMALL = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--trainer.accelerator", "cpu"]


def test_from_a_folder_of_photographs_to_their_embeddings(person):
    flowers(person.folder / "photos", 24)
    folder = ["--data", "ImageFolder", "--data.root", "photos", "--data.size", 32]
    said = person.run("fit", "--model", "SimCLR", *SMALL, *folder, "--data.batch_size", 8, "--trainer.max_epochs", 1)
    assert "last checkpoint" in said
    [last] = person.folder.rglob("last.ckpt")
    person.run("predict", "--ckpt_path", last, *folder)
    with np.load(person.folder / "embeddings.npz") as saved:
        assert saved["features"].shape == (24, 16)

"""What CPC learned of sounds: linear accuracy of a clip and of a frame, beside random initialisation and MFCCs.

Run `python benchmarks/cpc.py --ckpt last.ckpt --train fsdd/train --test fsdd/test`, with files that are named
{digit}_{speaker}_{take}.wav. A frame is one vector of a window from the recording's middle (silence that pads it
included), a clip their mean. Both are classified by logistic regression. The MFCCs are librosa's, 13 with their first
and second differences, as many in a second as CPC has contexts.
"""

import functools
from collections.abc import Callable

import librosa
import numpy as np
import torch
from timing import begin, parser
from torch import Tensor

import sslmodules
from sslmodules import CPC
from sslmodules.datamodules import AudioFolder
from sslmodules.evaluation import extract
from sslmodules.evaluation.frames import frame_accuracy

LABELS = {"digit": "^([0-9])_", "speaker": "_(.+)_"}


def mfccs(sounds: Tensor, sample_rate: int, hop: int) -> Tensor:
    """Return (B, T, 39) of sounds (B, 1, samples)."""
    found = librosa.feature.mfcc(
        y=sounds[:, 0].cpu().numpy(), sr=sample_rate, n_mfcc=13, n_fft=256, hop_length=hop, n_mels=40
    )  # (B, 13, T)
    both = [librosa.feature.delta(found, order=order, width=5) for order in (1, 2)]
    return torch.from_numpy(np.concatenate([found, *both], 1)).transpose(1, 2)


def recordings(root: str, label: str, window: int) -> AudioFolder:
    """Return a window of every recording, in order, with one kind of label."""
    return AudioFolder(root, labels=LABELS[label], window=window, val_fraction=0, num_workers=0)


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("--ckpt", required=True)
    arguments.add_argument("--train", required=True)
    arguments.add_argument("--test", required=True)
    arguments.add_argument("--window", type=int, default=3200, help="in samples")
    arguments.add_argument("--sample-rate", type=int, default=8000, help="of the recordings")
    args = arguments.parse_args()
    begin(args)
    method = sslmodules.load(args.ckpt)
    torch.manual_seed(args.seed)
    untrained = CPC(**{k: v for k, v in method.hparams.items() if not k.startswith("_")})
    roots = (args.train, args.test)
    digits = [recordings(root, "digit", args.window) for root in roots]
    labels = {
        label: [recordings(root, label, args.window).split("predict").dataset.labels for root in roots]
        for label in LABELS
    }
    hop = 1600 // method.encoder.length(1600)
    rows: dict[str, tuple[CPC, Callable[[Tensor], Tensor]]] = {
        "CPC": (method, method.frames),
        "the same at random initialisation": (untrained, untrained.frames),
        "MFCCs": (method, functools.partial(mfccs, sample_rate=args.sample_rate, hop=hop)),
    }
    print(f"{'':<36}" + "".join(f"{f'{label}, {of}':>16}" for of in ("clip", "frame") for label in LABELS))
    for name, (module, read) in rows.items():
        x, queries = (extract(module, data.predict_dataloader(), read=read)[0] for data in digits)  # (N, T, D)
        found = [
            frame_accuracy(fitted, y, measured, y_test)
            for fitted, measured in ((x.mean(1, keepdim=True), queries.mean(1, keepdim=True)), (x[:, ::16], queries))
            for y, y_test in labels.values()
        ]
        print(f"{name:<36}" + "".join(f"{share:>16.1%}" for share in found), flush=True)


if __name__ == "__main__":
    main()

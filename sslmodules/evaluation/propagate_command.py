"""The command ``sslmodules propagate``: masks of a video's frames from the mask of the first, and how good they are."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from sslmodules.datamodules.clips import require_av, upright
from sslmodules.datamodules.pictures import EXTENSIONS, list_pictures, picture_size, read_picture
from sslmodules.encoders import create_encoder, without_pretrained_weights
from sslmodules.evaluation.davis import Agreement, boundary_accuracy, mean_agreement, region_similarity, statistics
from sslmodules.evaluation.looking import (
    Looked,
    check_outside,
    looked_at_rgb,
    looked_by,
    looked_with,
    only_shape,
    patch_shape,
)
from sslmodules.evaluation.propagation import propagate_mask
from sslmodules.loading import built, load

CLIP = "overlay.webp"
CLIP_SIDE = 854  # px, its longer side at most: all frames of a clip are in memory at once
ASPECT = 0.01  # relative difference of two aspect ratios that rounding explains
COLORS = [channel for value in range(256) for channel in ImageColor.getrgb(f"hsl({137 * value % 360}, 100%, 50%)")]
HEADER = f"{'':20}" + "".join(
    f"{name:>9}" for name in ("J mean", "recall", "decay", "F mean", "recall", "decay", "J&F")
)

Track = Callable[[Iterable[Tensor], Tensor], Iterator[Tensor]]  # frames, or their maps, and the first mask -> masks


def propagate_masks(
    out: str,
    frames: str | None = None,
    mask: str | None = None,
    davis: str | None = None,
    split: str = "val",
    resolution: str = "480p",
    annotations: str | None = None,
    ckpt: str | None = None,
    encoder: str | None = None,
    baseline: Literal["identity", "untrained"] | None = None,
    stage: int | None = None,
    size: int = 480,
    last: int = 7,
    radius: int | None = 12,
    top_k: int = 5,
    temperature: float = 0.1,
    normalize: bool = True,
    fps: int = 24,
    seed: int = 0,
) -> dict[str, dict[int, Agreement]]:
    """Write the mask of every frame of a video, from that of its first, and a clip with the masks over the frames.

    A patch takes the label of the patches that its features resemble most, in the first frame and the last ones (see
    sslmodules.evaluation.propagate_labels). Frames are resized to a shorter side of ``size``, both sides to multiples
    of the patch, and normalised as the method does it, or for published weights by ImageNet's mean and standard
    deviation. A DINO or DINOv2 gives its teacher's features. Masks are PNG files with the values, the size and the
    palette of the first; the clip is an animated WebP. It runs on a GPU where there is one, frame by frame.

    Either of one video, with --frames and --mask; or of a data set in the layout of DAVIS, with --davis, whose
    sequences are then measured: region J and boundary F of every object of the first frame, over all frames but the
    first and the last, as DAVIS does in 2016 and 2017. They are printed, and in results.json those of each object.

    Args:
        out: folder to write into, empty or not there yet; of a data set a folder in it for each sequence.
        frames: folder with the frames of a video, in the order of their names; or a video file, which takes PyAV.
        mask: the first frame's, an indexed or grey PNG; 0 is background, each other value an object.
        davis: folder with JPEGImages, Annotations and ImageSets.
        split: of the data set, a file ImageSets/<split>.txt with the name of a sequence in each line.
        resolution: of the data set's frames, a folder in JPEGImages.
        annotations: of the data set's masks, a folder in Annotations; by default the same.
        ckpt: a checkpoint of this package, or a file of published weights (see sslmodules.encoders.load_weights).
        encoder: name of the encoder, where the file does not tell it (see sslmodules.encoders.create_encoder).
        baseline: "identity" copies the first mask; "untrained" takes the checkpoint's method, or the encoder named,
            at random initialisation.
        stage: of the encoder, whose map is taken, from 0 on; negative ones count from the last. By default the map
            that the method ends with. An earlier one of a convolutional encoder is finer, and often better.
        size: shorter side of the frames in pixels.
        last: how many frames before a frame it looks at besides the first.
        radius: how many rows and columns of patches away it looks at most; null is everywhere.
        top_k: how many patches a patch takes its label from.
        temperature: of their similarities; 0.5 for video colorization, whose features are not normalised.
        normalize: whether features are compared by direction alone.
        fps: frames a second of the clip.
        seed: of the random initialisation.

    Returns:
        Of each sequence of a data set, how well each object's masks agree with the true ones; empty of a video.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: neither a video nor a data set, or both; no encoder; a file, folder or sequence that is missing or
            does not fit the others; an output folder that holds something already.
    """
    if (davis is None) == (frames is None) or (frames is None) != (mask is None):
        raise ValueError("pass --frames and --mask of a video, or --davis with a data set")
    if davis is None:
        video = str(frames)
        videos = [_Video("", video if Path(video).is_file() else _listed(video, "--frames"), [str(mask)])]
        check_outside(out, "--frames", video)
    else:
        videos = _sequences(Path(davis), split, resolution, annotations or resolution)
        check_outside(out, "--davis", davis)
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ValueError(f"--out {out} exists and is no empty folder; pass another, or remove it")
    mode, track = "RGB", _copied
    if baseline != "identity":
        looked = _looked(ckpt, encoder, baseline == "untrained", seed)
        looked.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        propagated = partial(
            propagate_mask, last=last, radius=radius, top_k=top_k, temperature=temperature, normalize=normalize
        )
        mode, track = looked.mode, partial(_tracked, looked, stage, size, propagated)
    found: dict[str, dict[int, Agreement]] = {}
    with torch.no_grad():
        if davis is None:
            count = sum(1 for _ in _written(videos[0], Path(out), mode, track, fps))
            print(f"{count} masks and {CLIP} in {out}")
            return found
        print(f"{'':20}{HEADER}")
        for each in videos:
            masks = _written(each, Path(out) / each.name, mode, track, fps)
            found[each.name] = _agreement(masks, each.masks)
            print(_row(each.name, found[each.name].values()), flush=True)
    every = [agreement for objects in found.values() for agreement in objects.values()]
    print(_row("mean over objects", every))
    sequences = {name: {o: _plain(a) for o, a in objects.items()} for name, objects in found.items()}
    results = {"mean over objects": _plain(mean_agreement(every)), "sequences": sequences}
    (Path(out) / "results.json").write_text(json.dumps(results, indent=1))
    return found


class _Video(NamedTuple):
    """The files of a video's frames, or the file it is in; and of its masks, of the first alone or of all."""

    name: str
    frames: list[str] | str
    masks: list[str]


def _sequences(root: Path, split: str, resolution: str, annotations: str) -> list[_Video]:
    lists = root / "ImageSets"
    if not (lists / f"{split}.txt").is_file():
        there = ", ".join(sorted(str(p.relative_to(lists).with_suffix("")) for p in lists.rglob("*.txt")))
        raise ValueError(f"--split {split}: there is no {lists / split}.txt; there is {there or 'no list at all'}")
    videos = []
    for name in (lists / f"{split}.txt").read_text().split():
        frames = _listed(str(root / "JPEGImages" / resolution / name), "--davis, sequence")
        masks = _listed(str(root / "Annotations" / annotations / name), "--davis, sequence")
        if [Path(f).stem for f in frames] != [Path(m).stem for m in masks] or len(frames) < 3:
            raise ValueError(
                f"sequence {name} has {len(frames)} frames and {len(masks)} masks; expected at least 3, and for every "
                "frame a mask of its name"
            )
        videos.append(_Video(name, frames, masks))
    return videos


def _listed(folder: str, option: str) -> list[str]:
    """The pictures of a folder, each of another name."""
    if not Path(folder).is_dir():
        raise ValueError(f"{option} {folder}: there is no such folder")
    named: dict[str, str] = {}
    for file in list_pictures(folder):
        other = named.setdefault(Path(file).stem, file)
        if other != file:
            raise ValueError(f"{other} and {file} are frames of one name; keep one of them")
    if not named:
        raise ValueError(f"{option} {folder}: there is no picture in it ({', '.join(EXTENSIONS)})")
    return list(named.values())


def _looked(ckpt: str | None, encoder: str | None, untrained: bool, seed: int) -> Looked:
    """Who looks at the frames: what a file holds, or the same at random initialisation, or an untrained encoder."""
    if ckpt is None:
        if encoder is None or not untrained:
            raise ValueError("pass --ckpt; without it there are --baseline identity, or untrained with an --encoder")
        torch.manual_seed(seed)
        return looked_at_rgb(create_encoder(encoder))
    if not untrained:
        return looked_with(ckpt, encoder)
    module = load(ckpt, **({} if encoder is None else {"encoder": encoder}))
    torch.manual_seed(seed)
    with without_pretrained_weights():
        return looked_by(built(type(module), module.hparams), ckpt)


def _copied(pictures: Iterable[Tensor], mask: Tensor) -> Iterator[Tensor]:
    return (mask for _ in pictures)


def _tracked(
    looked: Looked, stage: int | None, size: int, propagated: Track, pictures: Iterable[Tensor], mask: Tensor
) -> Iterator[Tensor]:
    """Masks uint8 (H, W) of the frames (C, H', W') of a video, from that of the first."""
    device = next(looked.encoder.parameters()).device
    only, patch = only_shape(looked.encoder), patch_shape(looked.encoder, size)

    def resized(picture: Tensor) -> Tensor:
        """The frame (1, C, H'', W'') as the encoder sees it: the whole of it, as the mask is of the whole."""
        scale = size / min(picture.shape[1:])
        shape = [max(round(side * scale / p), 1) * p for side, p in zip(picture.shape[1:], patch, strict=True)]
        return resize(picture, list(only or shape))[None].to(device)

    return propagated((looked.map(resized(p), stage)[0] for p in pictures), mask)


def _written(video: _Video, folder: Path, mode: str, track: Track, fps: int) -> Iterator[Tensor]:
    """Masks uint8 (H, W) of the frames of a video, each after it is written; in the end the clip."""
    first, palette = _read_mask(video.masks[0])
    if not first.any():
        raise ValueError(f"{video.masks[0]} shows no object: all its values are 0, which is background")
    shown, seen = tee(_pictures(video.frames, first.shape, mode))
    clip: list[Image.Image] = []
    for (name, picture), mask in zip(shown, track((p for _, p in seen), first), strict=True):
        image = Image.fromarray(mask.cpu().numpy())
        if palette is not None:
            image.putpalette(palette)
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}.png")
        clip.append(_overlaid(picture, image, palette or COLORS))
        yield mask.cpu()
    clip[0].save(folder / CLIP, save_all=True, append_images=clip[1:], duration=round(1000 / fps), loop=0)


def _pictures(frames: list[str] | str, shape: Sequence[int], mode: str) -> Iterator[tuple[str, Tensor]]:
    """Name of each frame, and the frame as large as it is, uint8 (C, H', W')."""
    if isinstance(frames, str):
        named = ((f"{number:05d}", picture) for number, picture in enumerate(_decoded(frames, mode)))
    else:
        named = ((Path(file).stem, read_picture(file, picture_size(file), mode)) for file in frames)
    for name, picture in named:
        height, width = picture.shape[1:]
        if abs(height * shape[1] / (width * shape[0]) - 1) > ASPECT:
            raise ValueError(
                f"the first mask is {shape[1]}x{shape[0]} px and frame {name} is {width}x{height} px, of another "
                "shape; pass a mask of the whole frame, as large as it or resized"
            )
        yield name, picture


def _decoded(file: str, mode: str) -> Iterator[Tensor]:
    """All frames of a video file, upright, uint8 (C, H, W)."""
    av = require_av()
    try:
        with av.open(file) as container:
            for frame in container.decode(video=0):
                yield pil_to_tensor(upright(frame, mode))
    except Exception as error:  # the decoders raise all kinds
        raise ValueError(
            f"{file} cannot be read as a video ({type(error).__name__}: {error}); pass another, or a folder of frames"
        ) from error


def _read_mask(file: str) -> tuple[Tensor, list[int] | None]:
    """A mask, uint8 (H, W), and the palette of an indexed one."""
    try:
        with Image.open(file) as image:
            kind = f"{image.format} of mode {image.mode}"
            mask = image.convert("L") if image.mode == "1" else image
            values, palette = np.array(mask), mask.getpalette()
    except Exception as error:  # the decoders raise all kinds
        raise ValueError(f"{file} cannot be read as a mask ({type(error).__name__}: {error})") from error
    if values.ndim != 2 or values.dtype != np.uint8 or kind.startswith("JPEG"):
        raise ValueError(f"{file} is a {kind}; expected the mask as an indexed or an 8-bit grey PNG")
    return torch.from_numpy(values), palette


def _overlaid(picture: Tensor, mask: Image.Image, palette: list[int]) -> Image.Image:
    """A frame of the clip: objects half in their colour, background as it is."""
    frame = to_pil_image(picture).convert("RGB")
    frame.thumbnail((CLIP_SIDE, CLIP_SIDE))
    mask = mask.resize(frame.size, Image.Resampling.NEAREST)
    mask.putpalette(palette)
    tinted = Image.blend(frame, mask.convert("RGB"), 0.5)
    return Image.composite(tinted, frame, Image.fromarray(np.asarray(mask) > 0))


def _agreement(masks: Iterable[Tensor], true_masks: Sequence[str]) -> dict[int, Agreement]:
    """J and F of each object of the first frame, by its value, over all frames but the first and the last."""
    values = _read_mask(true_masks[0])[0].unique()
    objects = values[values > 0][:, None, None]  # (K, 1, 1)
    scores = []
    for mask, file in zip(masks, true_masks, strict=True):
        pair = mask == objects, _read_mask(file)[0] == objects  # (K, H, W) each
        scores.append(torch.stack([region_similarity(*pair), boundary_accuracy(*pair)]))
    j, f = torch.stack(scores[1:-1], 2)  # (K, T - 2) each
    return {int(o): Agreement(statistics(j[k]), statistics(f[k])) for k, o in enumerate(objects.flatten())}


def _row(name: str, agreements: Iterable[Agreement]) -> str:
    """A line of the table: means over objects."""
    j, f = mean_agreement(agreements)
    return f"{name:20}" + "".join(f"{value:9.1%}" for value in (*j, *f, (j.mean + f.mean) / 2))


def _plain(agreement: Agreement) -> dict[str, dict[str, float]]:
    return {"J": agreement.region._asdict(), "F": agreement.boundary._asdict()}

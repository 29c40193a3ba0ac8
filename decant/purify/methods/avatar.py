"""AVATAR: purification by a diffusion model (Dolatabadi et al., "The Devil's Advocate", 2023, arXiv 2303.08500).

Gaussian noise is added to an image until it covers any bounded perturbation, but not the content; a diffusion model
that was trained on clean images removes it again. The strongest rival where such a model exists; Decant brings none.

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e,  e ~ N(0, 1),  t = 100 of 1000 steps;  then t reverse steps from x_t to x_0

`checkpoint` is a folder in the layout of Hugging Face diffusers, with safetensors weights: a DDPM pipeline (`unet/`,
`scheduler/`) or a `UNet2DModel` alone. Changed: discrete DDPM steps instead of ScoreSDE's solver.

Cost: 100 passes of the diffusion model per image.
Expected: not measured, because we have no diffusion model trained on clean images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from decant.data.images import Images
from decant.errors import SettingsError, StageError
from decant.models.training import as_float, to_device
from decant.registry import peer
from decant.runtime import device
from decant.settings import Block, Positive
from decant.streams import torch_stream


@dataclass(frozen=True, kw_only=True)
class Settings(Block):
    checkpoint: str = ""
    """Folder of the diffusion model."""
    noise_steps: Annotated[int, Field(ge=0, le=1000)] = 100
    """Steps of Gaussian noise, of the model's 1000 (t* in the paper)."""
    batch_size: Positive = 256


def clean(images: Images, settings: Settings, *, seed: int) -> Images:
    """The images after `noise_steps` steps of noise and as many of the reverse process, rounded to uint8.

    Raises: SettingsError where `checkpoint` is no folder, StageError where its model can't be read or doesn't fit.
    """
    unet, scheduler = load_diffusion(settings.checkpoint, images.shape)
    if settings.noise_steps > len(scheduler.alphas_cumprod):
        known = len(scheduler.alphas_cumprod)
        raise SettingsError(f"avatar.noise_steps: the model has {known}, {settings.noise_steps} asked for")
    generator = torch_stream(seed, "avatar")
    parts = []
    for batch in to_device(images.pixels).split(settings.batch_size):
        x = as_float(batch) * 2 - 1
        purified = denoised(noised(x, settings.noise_steps, scheduler, generator), settings, unet, scheduler, generator)
        pixels = ((purified + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return images.with_pixels(np.ascontiguousarray(np.concatenate(parts)))


def noised(
    x: Float[Tensor, "n c h w"], steps: int, scheduler: Any, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """x_t = sqrt(a_t) x + sqrt(1 - a_t) e, for x in [-1, 1] and t = steps; x itself for t = 0."""
    if not steps:
        return x
    kept = scheduler.alphas_cumprod[steps - 1].to(x.device)
    return kept.sqrt() * x + (1 - kept).sqrt() * torch.randn(x.shape, generator=generator).to(x.device)


@torch.no_grad()
def denoised(
    x: Float[Tensor, "n c h w"], settings: Settings, unet: Any, scheduler: Any, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """The reverse process from x_t to x_0."""
    for t in reversed(range(settings.noise_steps)):
        x = scheduler.step(unet(x, t).sample, t, x, generator=generator).prev_sample
    return x


def load_diffusion(folder: str, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """(denoiser on the device, noise schedule). Raises where they can't be read or are for images of another size."""
    if not (folder and Path(folder).is_dir()):
        raise SettingsError(f"avatar.checkpoint: a folder with a diffusers model expected, {folder!r} found")
    diffusers = peer("diffusers", needed_by="avatar")
    weights, schedule = (_part(Path(folder), name) for name in ("unet", "scheduler"))
    try:
        unet = diffusers.UNet2DModel.from_pretrained(
            weights, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
        known = (schedule / "scheduler_config.json").is_file()
        scheduler = diffusers.DDPMScheduler.from_pretrained(schedule) if known else diffusers.DDPMScheduler()
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise StageError(f"avatar.checkpoint: {folder}: no UNet2DModel with safetensors weights: {why}") from error
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else (size or shape[:2])
    if (height, width, unet.config.in_channels) != shape:
        found = f"{height} x {width} x {unet.config.in_channels}"
        raise StageError(
            f"avatar.checkpoint: {folder} is for images of {found}, these are {' x '.join(map(str, shape))}"
        )
    return unet.to(device()).eval(), scheduler


def _part(root: Path, name: str) -> Path:
    """The part's own folder in a pipeline, else the folder itself."""
    return root / name if (root / name).is_dir() else root

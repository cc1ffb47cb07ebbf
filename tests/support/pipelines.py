"""diffusers' pipelines, offline, from small random parts: what people hold when they want another VAE in it.

`PIPELINES` names them. Most take an embedded text and hold no text encoder. Those of Stable Diffusion have a CLIP
encoder whose vocabulary is the alphabet, since offloading moves the text encoder too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from support.configs import drawn_weights, uniform

SIZE = 32
"""Height and width of the pictures, in pixels."""

VAE = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": SIZE,
}
UNQUANTIZED = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}
KINDS = {
    "sd": {"force_upcast": False},
    "sdxl": {"scaling_factor": 0.13025},
    "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609, **UNQUANTIZED},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159, **UNQUANTIZED},
    "flux2": {"latent_channels": 4},
}
"""What the families' VAEs differ in."""


def make_vae(kind: str = "sd", **fields) -> torch.nn.Module:
    """diffusers' AutoencoderKL or AutoencoderKLFlux2 in float32, with weights that show every part of it."""
    cls = diffusers.AutoencoderKLFlux2 if kind == "flux2" else diffusers.AutoencoderKL
    vae = cls(**{**VAE, **KINDS[kind], **fields}).eval()
    drawn = drawn_weights({name: tensor.shape for name, tensor in vae.state_dict().items()})
    drawn["decoder.conv_out.weight"] /= 4  # few pixels of the picture are clipped
    vae.load_state_dict({name: torch.tensor(array) for name, array in drawn.items()}, strict=True)
    return vae


def picture(size: int = SIZE) -> torch.Tensor:
    """(1, 3, size, size) in [0, 1]."""
    return torch.tensor(uniform(f"picture {size}", (1, 3, size, size), 0, 1), dtype=torch.float32)


def mask() -> torch.Tensor:
    """(1, 1, SIZE, SIZE): the lower right quarter is to be painted."""
    painted = torch.zeros(1, 1, SIZE, SIZE)
    painted[..., SIZE // 2 :, SIZE // 2 :] = 1
    return painted


def embedding(*shape: int) -> torch.Tensor:
    """Numbers in place of an encoded text."""
    return torch.tensor(uniform(f"text {shape}", shape), dtype=torch.float32)


def make_unet(channels: int = 4, **fields) -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=SIZE // 2,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **{"attention_head_dim": 2, "cross_attention_dim": 16, **fields},
    )


def clip_text() -> dict[str, Any]:
    """CLIP's text encoder at width 16, and a tokenizer that knows single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({symbol: token for token, symbol in enumerate(symbols)}, [], model_max_length=24)
    widths = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": len(symbols) - 2, "eos_token_id": len(symbols) - 1, "pad_token_id": len(symbols) - 1}
    config = CLIPTextConfig(vocab_size=len(symbols), max_position_embeddings=24, **widths, **special)
    return {"text_encoder": CLIPTextModel(config), "tokenizer": tokenizer}


NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_SECOND_TEXT = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
NO_THIRD_TEXT = {**NO_SECOND_TEXT, "text_encoder_3": None, "tokenizer_3": None}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def ddim() -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)


def sd_parts(channels: int = 4) -> dict[str, Any]:
    return {"unet": make_unet(channels), "scheduler": ddim(), **clip_text(), **NO_CHECKER}


def sdxl_parts(channels: int = 4, pooled: int = 16) -> dict[str, Any]:
    times = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = make_unet(channels, projection_class_embeddings_input_dim=6 * 4 + pooled, **times)
    return {"unet": unet, "scheduler": ddim(), **NO_SECOND_TEXT}


def kolors_parts() -> dict[str, Any]:
    return {name: part for name, part in sdxl_parts().items() if not name.endswith("_2")}


def sd3_parts() -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=16,
    )
    return {"transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **NO_THIRD_TEXT}


def flux_parts(channels: int = 64) -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return {"transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **NO_SECOND_TEXT}


def flux2_parts() -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return {"transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **NO_TEXT}


def z_image_parts() -> dict[str, Any]:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=1,
        n_kv_heads=1,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():  # diffusers leaves both as the memory was
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    return {"transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **NO_TEXT}


def sd_inputs() -> dict[str, Any]:
    return {"prompt": "a cat", "guidance_scale": 2.0}


def pooled_inputs() -> dict[str, Any]:
    """An encoded text with a vector for the whole of it, as SDXL and Kolors, SD3 and FLUX.1 take it."""
    return {"prompt_embeds": embedding(1, 8, 16), "pooled_prompt_embeds": embedding(1, 16)}


def unguided() -> dict[str, Any]:
    return {**pooled_inputs(), "guidance_scale": 1.0}


def negated() -> dict[str, Any]:
    """Both sides of the guidance, encoded."""
    return pooled_inputs() | {f"negative_{name}": -value for name, value in pooled_inputs().items()}


def flux2_inputs() -> dict[str, Any]:
    return {"prompt_embeds": embedding(1, 8, 16)}


def flux2_edit_inputs() -> dict[str, Any]:
    """With a picture of 64 px, the smallest that FLUX.2 takes."""
    pixels = (picture(64)[0] * 255).byte().permute(1, 2, 0).numpy()
    return {**flux2_inputs(), "image": Image.fromarray(pixels)}


def z_image_inputs() -> dict[str, Any]:
    return {"prompt_embeds": [embedding(8, 16)], "guidance_scale": 0.0}


def with_image(inputs: Callable[[], dict[str, Any]], **more) -> Callable[[], dict[str, Any]]:
    return lambda: {**inputs(), "image": picture(), "strength": 0.9, **more}


def with_mask(inputs: Callable[[], dict[str, Any]], **more) -> Callable[[], dict[str, Any]]:
    return with_image(inputs, mask_image=mask(), **more)


@dataclass(frozen=True)
class Recipe:
    """How one pipeline is built and called."""

    cls: str
    vae: str
    parts: Callable[[], Mapping[str, Any]]
    inputs: Callable[[], dict[str, Any]]
    sized: bool = True
    """Whether the call takes a height and a width."""


PIPELINES = {
    "sd": Recipe("StableDiffusionPipeline", "sd", sd_parts, sd_inputs),
    "sd-img2img": Recipe("StableDiffusionImg2ImgPipeline", "sd", sd_parts, with_image(sd_inputs), sized=False),
    "sd-inpaint": Recipe("StableDiffusionInpaintPipeline", "sd", lambda: sd_parts(9), with_mask(sd_inputs)),
    "sdxl": Recipe("StableDiffusionXLPipeline", "sdxl", sdxl_parts, unguided),
    "sdxl-img2img": Recipe("StableDiffusionXLImg2ImgPipeline", "sdxl", sdxl_parts, with_image(unguided), sized=False),
    "sdxl-inpaint": Recipe("StableDiffusionXLInpaintPipeline", "sdxl", sdxl_parts, with_mask(unguided)),
    "sd3": Recipe("StableDiffusion3Pipeline", "sd3", sd3_parts, unguided),
    "sd3-img2img": Recipe("StableDiffusion3Img2ImgPipeline", "sd3", sd3_parts, with_image(unguided)),
    "sd3-inpaint": Recipe("StableDiffusion3InpaintPipeline", "sd3", sd3_parts, with_mask(unguided)),
    "flux": Recipe("FluxPipeline", "flux", flux_parts, pooled_inputs),
    "flux-fill": Recipe("FluxFillPipeline", "flux", lambda: flux_parts(144), with_mask(pooled_inputs)),
    "flux2": Recipe("Flux2Pipeline", "flux2", flux2_parts, flux2_inputs),
    "flux2-edit": Recipe("Flux2Pipeline", "flux2", flux2_parts, flux2_edit_inputs),
    "z-image": Recipe("ZImagePipeline", "flux", z_image_parts, z_image_inputs),
    "kolors": Recipe("KolorsPipeline", "sdxl", kolors_parts, unguided),
    "modular": Recipe("modular", "sdxl", sdxl_parts, with_image(negated)),
}


def build(name: str, vae: torch.nn.Module | None = None) -> Any:
    """The pipeline of that name, always with the same numbers in it. A VAE that is given takes the place of its own."""
    recipe = PIPELINES[name]
    torch.manual_seed(0)
    parts = {**recipe.parts(), "vae": make_vae(recipe.vae) if vae is None else vae}
    pipe = modular(parts) if recipe.cls == "modular" else pipeline_class(name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_class(name: str) -> Any:
    """diffusers' class. Kolors warns while it is imported, of what torch has deprecated."""
    with warnings.catch_warnings(action="ignore"):
        return getattr(diffusers, PIPELINES[name].cls)


def modular(parts: Mapping[str, Any]) -> Any:
    """The modular pipeline of SDXL, without the block that encodes the text."""
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    blocks = StableDiffusionXLAutoBlocks()
    del blocks.sub_blocks["text_encoder"]
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in parts.items() if part is not None})
    return pipe


@torch.no_grad()
def run(pipe: Any, name: str, **more) -> np.ndarray:
    """(1, 3, SIZE, SIZE): the picture of one or two steps, always from the same noise."""
    recipe = PIPELINES[name]
    sizes = {"height": SIZE, "width": SIZE} if recipe.sized else {}
    options = {"num_inference_steps": 2, "output_type": "pt", **sizes, **more}
    inputs = _cast(recipe.inputs(), _denoiser(pipe).dtype)
    result = pipe(**inputs, **options, generator=torch.Generator().manual_seed(0))
    images = result.get("images") if recipe.cls == "modular" else result.images
    return images.float().numpy()


def _denoiser(pipe: Any) -> torch.nn.Module:
    return getattr(pipe, "unet", None) or pipe.transformer


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Texts in the dtype of the denoiser: several pipelines take it from them."""

    def cast(value):
        return [each.to(dtype) for each in value] if isinstance(value, list) else value.to(dtype)

    return {name: cast(value) if name.endswith("embeds") else value for name, value in inputs.items()}

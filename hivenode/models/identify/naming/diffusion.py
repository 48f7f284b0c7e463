"""State dicts of models that make pictures: diffusion, autoencoders, GANs, and adapters to them."""

from __future__ import annotations

from itertools import pairwise

from hivenode.models.identify.naming.state_dicts import Guess, Names, Rule
from hivenode.models.identify.report import Confidence

VISION = "computer_vision"
MAKE = "text_to_image"
GENERATORS = ("generator", "netG", "G", "gen", "netG_A2B", "G_A", "g_ema", "decoder_G")
DISCRIMINATORS = ("discriminator", "netD", "D", "disc", "critic_D", "D_A", "d")


def single_file(names: Names) -> Guess | None:
    """Checkpoints with everything in them, as the first implementations wrote them."""
    if names.has("model.diffusion_model.input_blocks.0.0.weight"):
        if names.has("conditioner.embedders.1."):
            model = "StableDiffusionXL"
        elif names.has("conditioner.embedders.0."):
            model = "StableDiffusionXLRefiner"
        else:
            attend = names.find(
                r"model\.diffusion_model\.input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight"
            )
            context = names.get(attend)[-1] if attend else 0
            model = {768: "StableDiffusion1", 1024: "StableDiffusion2"}.get(context, "StableDiffusion")
        return Guess("model.diffusion_model beside first_stage_model", VISION, MAKE, "diffusion", model)
    if names.has("joint_blocks.0.x_block.attn.qkv.weight"):
        return Guess("joint_blocks", VISION, MAKE, "diffusion", "StableDiffusion3")
    if names.has("double_blocks.0.img_attn.qkv.weight"):
        return Guess("double_blocks", VISION, MAKE, "diffusion", "Flux")
    return None


def diffusers_parts(names: Names) -> Guess | None:
    """The parts of a pipeline as diffusers names them."""
    if names.has("time_embedding.linear_1.weight") and names.has("down_blocks.0."):
        if names.has("controlnet_cond_embedding.conv_in.weight"):
            return Guess("controlnet_cond_embedding", VISION, MAKE, "diffusion", "ControlNetModel")
        told = names.find(r"(.*\.)?(down|mid)_block.*attn2\.to_k\.weight") is not None
        model = "UNet2DConditionModel" if told else "UNet2DModel"
        task = MAKE if told else "unconditional_image_generation"
        return Guess("time_embedding and down_blocks", VISION, task, "diffusion", model)
    if names.has("encoder.down_blocks.0.resnets.0.conv1.weight") and names.has("decoder.up_blocks.0."):
        model = "AutoencoderKL" if names.has("quant_conv.weight") else "VQModel"
        if names.has("quantize.embedding.weight"):
            model = "VQModel"
        elif model == "VQModel":
            model = "AutoencoderKL"
        return Guess(
            "down_blocks in an encoder, up_blocks in a decoder", VISION, "image_to_image", "autoencoder", model
        )
    if names.has("first_stage_model.encoder.down.0.") or names.has("encoder.down.0.block.0.conv1.weight"):
        return Guess("encoder.down and quantisation", VISION, "image_to_image", "autoencoder", "AutoencoderKL")
    if names.has("transformer_blocks.0.attn.add_k_proj.weight"):
        return Guess("transformer_blocks with add_k_proj", VISION, MAKE, "diffusion", "SD3Transformer2DModel",
                     how=Confidence.guessed)  # fmt: skip
    return None


def adapter(names: Names) -> Guess | None:
    """LoRA weights without their base."""
    unet = names.has("lora_unet_") or names.find(r"(base_model\.model\.)?unet\..*lora.*") is not None
    if unet:
        return Guess("low-rank factors for a U-Net", VISION, MAKE, "diffusion", "LoRA")
    if names.find(r".*\.lora_(A|B|embedding_A)(\.\w+)?(\.weight)?") or names.find(r".*\.lora_(down|up)\.weight"):
        ranks = [min(shape) for name, shape in names.matrices() if ".lora_A." in name or ".lora_down." in name]
        return Guess("low-rank factors", None, None, "transformer", "LoRA", how=Confidence.guessed,
                     sizes={"rank": ranks[0]} if ranks else {})  # fmt: skip
    return None


def gan(names: Names) -> Guess | None:
    """A generator, a discriminator, or both."""
    roots = {name.split(".", 1)[0] for name in names.shapes}
    made = [root for root in GENERATORS if root in roots]
    judged = [root for root in DISCRIMINATORS if root in roots]
    if made and judged:
        return Guess(f"{made[0]} and {judged[0]}", VISION, "image_generation", "gan", "GAN")
    if names.has("mapping.fc0.weight") and names.has("synthesis.b4."):
        return Guess("mapping and synthesis", VISION, "image_generation", "gan", "StyleGAN2")
    filters = [(name, shape) for name, shape in names.matrices() if len(shape) == 4]
    others = [shape for _, shape in names.matrices() if len(shape) != 4]
    if len(filters) < 3 or len(others) > 1:
        return None
    shapes = [shape for _, shape in filters]
    chained = all(before[1] == after[0] for before, after in pairwise(shapes))
    if chained and shapes[-1][1] in (1, 3) and shapes[0][0] > shapes[-1][1] and shapes[0][1] > shapes[-1][1]:
        # transposed convolutions keep (inputs, outputs): from noise to a picture
        return Guess(
            f"transposed convolutions from {shapes[0][0]} to {shapes[-1][1]} channels", VISION, "image_generation",
            "gan", "DCGANGenerator" if shapes[0][2:] == (4, 4) else "Generator", task_how=Confidence.guessed,
            how=Confidence.guessed, sizes={"noise_size": shapes[0][0]},
        )  # fmt: skip
    forward = all(before[0] == after[1] for before, after in pairwise(shapes))
    if forward and shapes[0][1] in (1, 3) and shapes[-1][0] == 1 and not others:
        return Guess(
            f"convolutions from {shapes[0][1]} channels to one number", VISION, "image_generation", "gan",
            "DCGANDiscriminator" if shapes[0][2:] == (4, 4) else "Discriminator", how=Confidence.guessed,
        )  # fmt: skip
    return None


RULES: tuple[Rule, ...] = (single_file, diffusers_parts, adapter, gan)

"""`t2i train text2image`: latent diffusion from scratch, conditioned on captions (Rombach et al. 2022).

A CLIP-format text encoder and diffusers' UNet2DConditionModel learn together to predict the flow in the latents of an
autoencoder that is already trained. The export is an ordinary StableDiffusionPipeline folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2i.config import Text2ImageConfig
from t2i.data.batches import flips
from t2i.data.captions import all_captions, caption
from t2i.data.tables import Table, load_table
from t2i.diffusion.objective import TIMES, add_noise, shifted, target
from t2i.diffusion.schedule import SCHEDULES
from t2i.distributed import is_main, processes
from t2i.errors import CheckpointError, ModelError
from t2i.imaging import images
from t2i.pipelines.text_to_image.pipeline import Job, TextToImage
from t2i.randomness import derive_seed, generator
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, CostEstimate, blank, size, work
from t2i.training.engine import Engine, Step
from t2i.training.latents import cached_latents
from t2i.training.losses import by_noise_level
from t2i.training.runs.run_folder import Launch, RunFolder
from t2i.training.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

# The scheduler of the export has 1000 integer timesteps; the U-Net sees time in those units, t = 1 being 1000.
TIMESTEPS = 1000


class Denoiser(nn.Module):
    """Text encoder and U-Net, trained as one."""

    def __init__(self, config: Text2ImageConfig, vocabulary: int, vae: AutoencoderKL) -> None:
        """vocabulary: entries of the tokenizer, whose last two are the start and the end marker."""
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        torch.manual_seed(derive_seed(config.seed, "text2image weights"))
        words, net = config.text_encoder, config.unet
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=words.width,
                intermediate_size=4 * words.width,
                num_hidden_layers=words.layers,
                num_attention_heads=words.heads,
                max_position_embeddings=words.tokens,
                projection_dim=words.width,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
                dtype="float32",  # said, so that weights stored in float16 load as float32 like the other parts
            )
        )
        # Words start far apart, and stay so while the styles, which explain most of a picture, are learned first: from
        # CLIP's own start (deviation 0.02) the objects were lost. The end marker, which also pads, starts near zero:
        # what its states carry is what attention gathers from the words before.
        embeddings = self.text_encoder.get_input_embeddings().weight
        nn.init.normal_(embeddings)
        with torch.no_grad():
            embeddings[-1] *= 0.02
        halvings = 2 ** (len(vae.config.block_out_channels) - 1)
        self.unet = UNet2DConditionModel(
            sample_size=config.data.size // halvings,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            block_out_channels=net.channels,
            layers_per_block=net.layers,
            norm_num_groups=net.groups,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in net.attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(net.attention)),
            cross_attention_dim=words.width,
            attention_head_dim=tuple(c // net.head_size for c in net.channels),  # diffusers' name for the head count
            # The caption, pooled, also joins the time embedding, which scales and shifts every block. Through
            # cross-attention alone the objects were not there yet after 40,000 images, only the styles.
            addition_embed_type="text",
            addition_embed_type_num_heads=words.heads,
            resnet_time_scale_shift="scale_shift",
        )

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """x_t: (B, C, h, w) noised latents.  t: (B,) in [0, 1].  ids: (B, L) int64 tokens.  Returns (B, C, h, w)."""
        words = self.text_encoder(ids).last_hidden_state
        return self.unet(x_t, t * TIMESTEPS, words).sample


@dataclass(frozen=True)
class Setup:
    """What the loop needs beside the network: data, latents in memory, and the frozen parts of the pipeline."""

    table: Table
    latents: Tensor
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL


def estimate_cost(config: Text2ImageConfig) -> CostEstimate:
    """What this config trains.  Raises ModelError: no autoencoder."""
    vocabulary = config.text_encoder.vocabulary  # the tokenizer is not trained yet: it has at most so many words
    net = Denoiser(config, vocabulary, load_autoencoder(config.autoencoder))
    parameters = {"text encoder": size(net.text_encoder), "U-Net": size(net.unet)}
    net, unet = net.to("meta"), net.unet.config
    x_t = blank(1, unet.in_channels, unet.sample_size, unet.sample_size)
    ids = blank(1, config.text_encoder.tokens, dtype=torch.long)
    return CostEstimate(parameters, FORWARD_AND_BACKWARD * work(lambda: net(x_t, blank(1), ids)))


def train_text2image(config: Text2ImageConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, text-conditioned latent diffusion.  Returns the exported pipeline folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    progress = launch.progress and is_main()
    vae = load_autoencoder(config.autoencoder)
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, progress)
    tokenizer = load_or_train_tokenizer(config, table, folder)
    net = Denoiser(config, len(tokenizer), vae)
    rates = {"text_encoder.": config.text_encoder.rate}
    engine = Engine(config, folder, net, table.hash, launch, rates)
    where = Path(config.latents) if config.latents else folder.path / "latents"
    with engine.accelerator.main_process_first():  # the others read what it wrote
        latents = cached_latents(vae.to(engine.device), table, where, engine.precision, progress)
    setup = Setup(table, latents, tokenizer, vae)
    schedule = SCHEDULES[config.objective.schedule]()
    for step in engine.steps():
        x0, ids = (part.to(engine.device) for part in batch(setup, config, step))
        # Drawn for the global batch, then sliced: the same numbers on any number of processes.
        draw = generator(config.seed, "noise", step.index)
        eps = torch.randn(step.batch, *x0.shape[1:], generator=draw)[step.share].to(engine.device)
        t = TIMES[config.objective.time](step.batch, schedule, draw)
        t = shifted(t, schedule, config.objective.shift)[step.share]
        x_t = add_noise(x0, eps, t, schedule)
        prediction = engine.module(x_t, t.to(engine.device, torch.float32), ids)
        squares = (prediction - target(x0, eps, t, schedule, config.objective.predict)).square()
        engine.tally(by_noise_level(squares.detach().mean((1, 2, 3)), t, schedule.T))
        engine.update(step, squares.mean())
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                draw_samples(pipeline(engine, average, config, setup), config, folder, engine.images_seen)
    average = engine.average()
    if is_main():
        pipeline(engine, average, config, setup).save_pretrained(folder.export)
    return folder.export


def batch(setup: Setup, config: Text2ImageConfig, step: Step) -> tuple[Tensor, Tensor]:
    """This process's share of a step: latents (b, C, h, w) float32 and token ids (b, L) of their captions."""
    rows = setup.table.order(config.seed, step.first, step.batch)
    mirrored = flips(config.seed, step.first, step.batch) & config.data.flip
    texts = [
        caption(setup.table.row(row), config.captions, config.seed, step.first + i)
        for i, row in enumerate(rows.tolist())
    ]
    ids = tokenize(setup.tokenizer, texts[step.share])
    return setup.latents[mirrored.long(), rows][step.share].float(), ids


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(B, L) int64, padded or cut to the encoder's length, as StableDiffusionPipeline does."""
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, max_length=tokenizer.model_max_length, **options).input_ids


def load_autoencoder(name: str) -> AutoencoderKL:
    """The autoencoder of a finished run, or of a folder in diffusers' format, frozen.  Raises ModelError."""
    from diffusers import AutoencoderKL

    path = Path(name)
    for folder in (path / "export", path, path / "vae"):
        if (folder / "config.json").is_file():
            try:
                return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
            except (OSError, ValueError, RuntimeError) as e:
                raise ModelError(f"cannot load the autoencoder in {folder}: {e}") from None
    raise ModelError(
        f"no autoencoder in {name}: neither a finished run nor a folder with config.json",
        "t2i train autoencoder makes one; name its run folder as `autoencoder:`",
    )


def load_or_train_tokenizer(config: Text2ImageConfig, table: Table, folder: RunFolder) -> CLIPTokenizer:
    """The run's tokenizer: trained at the first start on every caption the data can get, and kept in the run folder."""
    from transformers import CLIPTokenizer

    path = folder.path / "tokenizer"
    if is_main() and not folder.saved():
        captions = all_captions(table.columns, config.captions)
        tokenizer = train_tokenizer(captions, config.text_encoder.vocabulary, config.text_encoder.tokens)
        tokenizer.save_pretrained(path)
    processes().wait_for_everyone()
    if not path.is_dir():
        raise CheckpointError(f"{folder.path} has checkpoints, but {path} is missing", "--fresh starts over")
    return CLIPTokenizer.from_pretrained(path)


def pipeline(
    engine: Engine, weights: dict[str, Tensor], config: Text2ImageConfig, setup: Setup
) -> StableDiffusionPipeline:
    """Weights of a denoiser as a Stable Diffusion pipeline on the engine's device."""
    from diffusers import StableDiffusionPipeline

    net = Denoiser(config, len(setup.tokenizer), setup.vae)
    net.load_state_dict(weights)
    net.to(engine.device).eval()
    return StableDiffusionPipeline(
        vae=setup.vae,
        text_encoder=net.text_encoder,
        tokenizer=setup.tokenizer,
        unet=net.unet,
        scheduler=export_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_scheduler() -> DPMSolverMultistepScheduler:
    """The multistep solver, which knows flows and fits StableDiffusionPipeline.

    diffusers' FlowMatchEulerDiscreteScheduler does not: it has no init_noise_sigma.
    """
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
    )


def draw_samples(pipe: StableDiffusionPipeline, config: Text2ImageConfig, folder: RunFolder, images_seen: int) -> None:
    """Save the grid of the config's prompts, each with the same seed every time."""
    wanted = config.samples
    model = TextToImage.wrap(pipe)
    # weights=False: a caption is plain text, brackets and all
    settings = model.settings(
        negative_prompt=wanted.negative, steps=wanted.steps, guidance=wanted.guidance, weights=False
    )
    jobs = [Job(prompt, config.seed + i) for i, prompt in enumerate(wanted.prompts)]
    results = model.draw(jobs, settings)
    sheet = images.grid([result.image for result in results], columns=wanted.columns)
    images.save(sheet, folder.samples / f"{images_seen:012d}.png", overwrite=True)

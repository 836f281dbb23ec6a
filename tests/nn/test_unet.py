"""The U-Net is diffusers' UNet2DModel: one seed gives the same weights, they give the same numbers and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i.errors import ModelError, UsageError
from t2i.nn.unet import UNet2DModel, Upsample, attend

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes and a null class": {"num_class_embeds": 11},
    "one head": {"attention_head_dim": None},
    "many heads": {"attention_head_dim": 2},
    "heads that leave channels over": {"attention_head_dim": 12},
    "time scales and shifts": {"resnet_time_scale_shift": "scale_shift", "num_class_embeds": 3},
    "norm before the middle attention": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "as the paper's code": {
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "attention_head_dim": None
    },
    "one level": {
        "block_out_channels": (24,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)
    },
    "three levels": {
        "block_out_channels": (8, 24, 16),
        "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "no attention": {
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False
    },
    "odd width": {"block_out_channels": (15, 30), "norm_num_groups": 5, "attention_head_dim": 10},
    "other channels, centred": {"in_channels": 1, "out_channels": 2, "center_input_sample": True, "act_fn": "swish"},
    "divisor in the middle": {"mid_block_scale_factor": 1.5, "time_embedding_dim": 20},
}  # fmt: skip

# The unet folder of google/ddpm-cifar10-32 says this.
PUBLISHED: dict[str, Any] = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def make(kind: type[nn.Module] = UNet2DModel, **changes: Any) -> nn.Module:
    """A small network whose every weight is away from 0 and 1, so that each one shows in the output."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = kind(**{**SMALL, **changes})
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return net.eval()


def inputs(net: nn.Module, height: int = 8, width: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Three images, fractional times, and labels where the network has classes, the null class among them."""
    draw = torch.Generator().manual_seed(1)
    x_t = torch.randn(3, net.config.in_channels, height, width, generator=draw, dtype=dtype)
    classes = net.config.num_class_embeds
    return [x_t, torch.tensor([0.25, 17.0, 998.6]), *([] if classes is None else [torch.tensor([0, 1, classes - 1])])]


def gradients(net: nn.Module, out: Tensor, x_t: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss that weighs every output differently, for every weight and the image."""
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    named = {**dict(net.named_parameters()), "x_t": x_t}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_seed_makes_the_same_network(variant: str) -> None:
    ours, theirs = make(**VARIANTS[variant]), make(diffusers.UNet2DModel, **VARIANTS[variant])
    # The order too: an optimizer's state is saved by position.
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_are_diffusers(variant: str) -> None:
    """In float64 to its last digits, so that float32 can differ by rounding alone; not square, to tell H from W."""
    ours, theirs = make(**VARIANTS[variant]).double(), make(diffusers.UNet2DModel, **VARIANTS[variant]).double()
    x_t, t, *labels = inputs(ours, 12, 8, torch.float64)
    a, b = x_t.clone().requires_grad_(), x_t.clone().requires_grad_()
    out, expected = ours(a, t, *labels), theirs(b, t, *labels).sample
    assert out.shape == expected.shape
    assert error(out, expected) < 1e-12
    mine, others = gradients(ours, out, a), gradients(theirs, expected, b)
    for name, gradient in others.items():
        assert gradient.abs().max() > 0 or "to_k.bias" in name, name  # a test without this weight would prove nothing
        assert error(mine[name], gradient) < 1e-11, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_agrees_to_rounding(variant: str) -> None:
    ours, theirs = make(**VARIANTS[variant]), make(diffusers.UNet2DModel, **VARIANTS[variant])
    given_ = inputs(ours)
    assert error(ours(*given_), theirs(*given_).sample) < 1e-5


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_config_agrees(data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, 3))
    kinds = st.lists(st.booleans(), min_size=levels, max_size=levels)
    width = st.sampled_from([4, 8, 12, 20])
    classes = data.draw(st.sampled_from([None, 1, 4]))
    config = {
        "block_out_channels": data.draw(st.lists(width, min_size=levels, max_size=levels)),
        "down_block_types": [("DownBlock2D", "AttnDownBlock2D")[attn] for attn in data.draw(kinds)],
        "up_block_types": [("UpBlock2D", "AttnUpBlock2D")[attn] for attn in data.draw(kinds)],
        "layers_per_block": data.draw(st.integers(1, 3)),
        "attention_head_dim": data.draw(st.sampled_from([None, 1, 3, 4])),
        "norm_num_groups": data.draw(st.sampled_from([1, 2, 4])),
        "downsample_padding": data.draw(st.sampled_from([0, 1])),
        "resnet_time_scale_shift": data.draw(st.sampled_from(["default", "scale_shift"])),
        "add_attention": data.draw(st.booleans()),
        "num_class_embeds": classes,
    }
    ours, theirs = make(**config), make(diffusers.UNet2DModel, **config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    size = 4 if levels > 1 else data.draw(st.integers(3, 5))  # with one level any size will do
    x_t, t, *_ = inputs(ours, size, size)
    labels = [] if classes is None else [torch.zeros(3, dtype=torch.long)]
    with torch.no_grad():
        assert error(ours(x_t, t, *labels), theirs(x_t, t, *labels).sample) < 1e-5


def test_the_papers_cifar10_network() -> None:
    """35.7 million parameters, as Ho et al. 2020, appendix B, says; from the config that Google's folder has."""
    ours = UNet2DModel.from_config(PUBLISHED).eval()
    assert sum(parameter.numel() for parameter in ours.parameters()) == 35_746_307
    theirs = diffusers.UNet2DModel.from_config(PUBLISHED).eval()
    theirs.load_state_dict(ours.state_dict())
    x_t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert error(ours(x_t, 500), theirs(x_t, 500).sample) < 1e-5


def test_dropout_falls_on_the_same_values() -> None:
    changes = {
        **VARIANTS["no attention"],
        "dropout": 0.3,
    }  # diffusers' attention turns the memory order, and so the mask
    ours, theirs = make(**changes).train(), make(diffusers.UNet2DModel, **changes).train()
    given_ = inputs(ours)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        out = ours(*given_)
        torch.manual_seed(5)
        expected = theirs(*given_).sample
    assert error(out, expected) < 1e-5
    assert error(ours.eval()(*given_), expected) > 1e-2


def test_time_is_a_real_number_of_any_form() -> None:
    ours, theirs = make(), make(diffusers.UNet2DModel)
    x_t = inputs(ours)[0]
    for t in (7, 7.0, torch.tensor(7), torch.tensor([7]), torch.full((3,), 7.0), torch.full((3,), 7)):
        assert error(ours(x_t, t), theirs(x_t, 7).sample) < 1e-5
    half = ours(x_t, 7.5)
    assert error(half, theirs(x_t, torch.tensor(7.5)).sample) < 1e-5
    assert error(half, ours(x_t, 7)) > 1e-4  # a plain 7.5 is not cut to 7, as diffusers does


# Folders


@pytest.mark.parametrize("variant", ["classes and a null class", "as the paper's code", "three levels"])
def test_our_folder_loads_in_diffusers(variant: str, tmp_path: Path) -> None:
    ours = make(sample_size=8, num_train_timesteps=1000, **VARIANTS[variant])
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "UNet2DModel"
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path)
    public = {name for name in theirs.config if not name.startswith("_")}
    assert public == {name for name in ours.config if not name.startswith("_")}
    for name in public:
        assert json.dumps(theirs.config[name]) == json.dumps(ours.config[name]), name
    assert error(ours(*inputs(ours)), theirs(*inputs(ours)).sample) < 1e-5


@pytest.mark.parametrize("variant", ["classes and a null class", "as the paper's code", "three levels"])
def test_a_folder_of_diffusers_loads_in_ours(variant: str, tmp_path: Path) -> None:
    theirs = make(diffusers.UNet2DModel, sample_size=8, num_train_timesteps=1000, **VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    ours = UNet2DModel.from_pretrained(tmp_path)
    assert not ours.training
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert error(ours(*inputs(ours)), theirs(*inputs(ours)).sample) < 1e-5
    ours.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again.pop("_name_or_path") == str(tmp_path)
    assert again == json.loads((tmp_path / "config.json").read_text())


def test_half_precision_loads_too(tmp_path: Path) -> None:
    ours = make()
    ours.save_pretrained(tmp_path)
    half = UNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    x_t, t = inputs(ours)
    assert error(half(x_t.bfloat16(), t).float(), ours(x_t, t)) < 0.05


def test_old_names_of_attention_load(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 was published before diffusers renamed query, key, value and proj_attn."""
    small = {**PUBLISHED, "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 8}
    theirs = make(diffusers.UNet2DModel, **{k: v for k, v in small.items() if not k.startswith("_")})
    theirs.save_pretrained(tmp_path)
    old = {}
    for name, value in load_file(tmp_path / "diffusion_pytorch_model.safetensors").items():
        for new, before in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = value
    assert any(".proj_attn." in name for name in old)
    assert not any(".to_" in name for name in old)
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(small))
    ours, report = UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


# What cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'; allowed: None"),
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'; allowed: None"),
        ({"resnet_time_scale_shift": "spatial"}, "'spatial'; allowed: 'default', 'scale_shift'"),
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "'SkipDownBlock2D'; allowed: 'DownBlock2D', 'Attn"),
        ({"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}, "up_block_types 'CrossAttnUpBlock2D'"),
        ({"mid_block_type": None}, "mid_block_type None; allowed: 'UNetMidBlock2D'"),
        ({"downsample_type": "resnet"}, "downsample_type 'resnet'; allowed: 'conv'"),
        ({"upsample_type": "resnet"}, "upsample_type 'resnet'; allowed: 'conv'"),
        ({"downsample_padding": 2}, "downsample_padding 2; allowed: 0, 1"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'; allowed: 'positional'"),
        ({"act_fn": "mish"}, "act_fn 'mish'; allowed: 'silu'"),
        ({"layers_per_block": 0}, "layers_per_block 0"),
        ({"block_out_channels": (16,)}, "1 block_out_channels for 2 down_block_types and 2 up_block_types"),
        ({"norm_num_groups": 12}, "16 channels in 12 norm groups"),
        ({"norm_num_groups": None}, "16 channels in None norm groups"),
        ({"attn_norm_num_groups": 5}, "32 channels in 5 norm groups"),
        ({"attention_head_dim": 64}, "attention_head_dim 64 at 32 channels; allowed: None, or 1 to 32"),
        ({"attention_head_dim": 0}, "attention_head_dim 0"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as e:
        UNet2DModel(**{**SMALL, **changes})
    assert message in e.value.message


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    make(diffusers.UNet2DModel, downsample_type="resnet").save_pretrained(tmp_path)
    with pytest.raises(ModelError) as e:
        UNet2DModel.from_pretrained(tmp_path)
    assert "downsample_type 'resnet'" in e.value.message


def test_inputs_that_do_not_fit_are_refused() -> None:
    plain, classes = make(), make(num_class_embeds=4)
    x_t, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    for net, args, message in [
        (plain, (torch.randn(2, 3, 8, 7), 1), "(2, 3, 8, 7); allowed: (B, 3, H, W), H and W multiples of 2"),
        (plain, (torch.randn(2, 4, 8, 8), 1), "(2, 4, 8, 8); allowed: (B, 3, H, W)"),
        (plain, (torch.randn(3, 8, 8), 1), "(3, 8, 8)"),
        (plain, (x_t, torch.tensor([1, 2, 3])), "timestep has the shape (3,); allowed: one number, or (2,)"),
        (plain, (x_t, 1, labels), "has no classes"),
        (classes, (x_t, 1), "class_labels is missing"),
    ]:
        with pytest.raises(UsageError) as e:
            net(*args)
        assert message in e.value.message


# Where speed was bought, the mathematics is the same


def test_upsample_is_repeating_and_a_convolution() -> None:
    up = Upsample(3).double()
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert error(up(x), up.conv(F.interpolate(x, scale_factor=2))) < 1e-14


def test_attention_is_its_definition_and_as_exact_as_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(2, 3, 20, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    exact = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5, -1) @ v
    assert error(attend(q, k, v), exact) < 1e-14
    short = [value.bfloat16() for value in (q, k, v)]
    rounding = error(F.scaled_dot_product_attention(*short).double(), exact)
    assert 0 < error(attend(*short).double(), exact) < 2 * rounding


@pytest.mark.parametrize("variant", ["classes and a null class", "time scales and shifts"])
def test_bfloat16_autocast_is_as_exact_as_diffusers(variant: str) -> None:
    ours, theirs = make(**VARIANTS[variant]), make(diffusers.UNet2DModel, **VARIANTS[variant])
    given_ = inputs(ours, 16, 16)
    exact = ours(*given_)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = ours(*given_), theirs(*given_).sample
    assert out.dtype == torch.bfloat16
    rounding = (expected.float() - exact).square().mean().sqrt()
    assert 0 < (out.float() - exact).square().mean().sqrt() < 1.2 * rounding
    out.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in ours.parameters())


def test_channels_last_changes_nothing() -> None:
    ours = make()
    x_t, t = inputs(ours)
    expected = ours(x_t, t)
    out = ours.to(memory_format=torch.channels_last)(x_t.to(memory_format=torch.channels_last), t)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert error(out, expected) < 1e-5


def test_compiles_without_a_break() -> None:
    ours = make(**VARIANTS["time scales and shifts"])
    given_ = inputs(ours)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(*given_), ours(*given_))

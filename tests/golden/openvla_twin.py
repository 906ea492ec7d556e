"""Writes tiny random checkpoints as OpenVLA-OFT publishes its own: files, names, prefixes, dtypes, unused weights.

Geometry: towers of width 32 and 48 and depth 3 on 28 x 28 pixels (4 patches), a language model of width 64 with two
layers and the real vocabulary. Weights are large enough that every one of them moves the result. As in the published
files, nothing says how long a chunk is or how many heads a tower has: here 2 per tower.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

STEP = 150_000
DEPTH, WIDTHS, IMAGE, PATCH = 3, (32, 48), 28, 14
D, MLP, LAYERS, LANGUAGE_HEADS, TOWER_HEADS, VOCABULARY = 64, 128, 2, 4, 2, 32064
RANK, LORA_SCALE = 32, 0.5
MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]
STATISTICS_KEY = "libero_spatial_no_noops"

type State = dict[str, Tensor]


def write_twin(
    folder: Path,
    *,
    seed: int = 0,
    head: str = "l1",
    film: bool = False,
    action_dim: int = 7,
    proprio_dim: int = 8,
    lora: bool = False,
    merge: bool = True,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes one checkpoint folder.

    Args:
        folder: is made.
        seed: of all numbers; the base weights of a seed do not depend on the other arguments.
        head: "l1", "diffusion" (with its noisy-action projector) or "discrete" (no file of its own).
        film: write `vision_backbone--*.pt`, the wrapped towers, LoRA not merged; the shards hold the base's.
        action_dim: A.
        proprio_dim: numbers of the robot's state; 0 for a policy that does not see it.
        lora: write `lora_adapter/`, and merge it into the shards as published checkpoints do.
        merge: False leaves it out of the shards: the base that belongs to the same folder with True.
        dtype: of shards and head; projectors are float32 always, as published.
    """
    if head not in ("l1", "diffusion", "discrete"):
        raise ValueError(f"head is '{head}'")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _draw(name, shape, seed) for name, shape in _base_shapes()}
    adapter = (
        _adapter({n: w for n, w in weights.items() if not (film and n.startswith("vision"))}, seed) if lora else {}
    )
    _write_shards(folder, _merged(weights, adapter) if merge else weights, dtype)
    if lora:
        _write_adapter(folder / "lora_adapter", adapter)
    if film:
        _write_part(folder, "vision_backbone", _filmed(weights, seed), dtype, wrapped=False)
    if head != "discrete":
        prefix = "model." if head == "l1" else "noise_predictor.mlp_resnet."
        _write_part(folder, "action_head", _drawn(_head_shapes(prefix, action_dim), "head", seed), dtype)
    if head == "diffusion":
        _write_part(folder, "noisy_action_projector", _drawn(_two_layers(1), "noisy", seed), torch.float32)
    if proprio_dim:
        _write_part(folder, "proprio_projector", _drawn(_two_layers(proprio_dim), "proprio", seed), torch.float32)
    _write_json(folder, action_dim, proprio_dim, seed)
    (folder / "modeling_prismatic.py").write_text("raise RuntimeError('code from a checkpoint must not run')\n")


def prompt_ids(instruction: str) -> list[int]:
    """What this twin's tokenizer makes of the published prompt: BOS, the text, and 29871; ASCII only."""
    rest = f"n: What action should the robot take to {instruction.lower()}?\nOut:".replace(" ", "▁")
    vocabulary = _vocabulary()
    return [1, vocabulary["▁I"], *[vocabulary["<0x0A>" if letter == "\n" else letter] for letter in rest], 29871]


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers that depend on the name and the seed alone, scaled by what the name says they are."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("scale_factor"):
        return 1 + 0.3 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise
    if any(part in name for part in ("embed_tokens", "pos_embed", "_token", "latent")):
        return 0.5 * noise
    return noise / noise[0].numel() ** 0.5


def _drawn(shapes: Iterator[tuple[str, tuple[int, ...]]], part: str, seed: int) -> State:
    return {name: _draw(f"{part}.{name}", shape, seed) for name, shape in shapes}


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _two_layers(inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear("fc1", inputs, D)
    yield from _linear("fc2", D, D)


def _base_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _tower_shapes("vision_backbone.featurizer", WIDTHS[0], mlp=4 * WIDTHS[0], dino=True)
    yield from _tower_shapes("vision_backbone.fused_featurizer", WIDTHS[1], mlp=int(3.7362 * WIDTHS[1]), dino=False)
    both = sum(WIDTHS)
    yield from _linear("projector.fc1", both, 4 * both)
    yield from _linear("projector.fc2", 4 * both, D)
    yield from _linear("projector.fc3", D, D)
    yield "language_model.model.embed_tokens.weight", (VOCABULARY, D)
    for layer in range(LAYERS):
        name = f"language_model.model.layers.{layer}"
        for part in "qkvo":
            yield from _linear(f"{name}.self_attn.{part}_proj", D, D, bias=False)
        yield from _linear(f"{name}.mlp.gate_proj", D, MLP, bias=False)
        yield from _linear(f"{name}.mlp.up_proj", D, MLP, bias=False)
        yield from _linear(f"{name}.mlp.down_proj", MLP, D, bias=False)
        yield f"{name}.input_layernorm.weight", (D,)
        yield f"{name}.post_attention_layernorm.weight", (D,)
    yield "language_model.model.norm.weight", (D,)
    yield "language_model.lm_head.weight", (VOCABULARY, D)


def _tower_shapes(name: str, width: int, mlp: int, dino: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    if dino:
        yield f"{name}.cls_token", (1, 1, width)
        yield f"{name}.reg_token", (1, 4, width)
    yield f"{name}.pos_embed", (1, (IMAGE // PATCH) ** 2, width)
    yield f"{name}.patch_embed.proj.weight", (width, 3, PATCH, PATCH)
    yield f"{name}.patch_embed.proj.bias", (width,)
    for block in range(DEPTH):
        yield from _block_shapes(f"{name}.blocks.{block}", width, mlp, dino)
    yield from _norm(f"{name}.norm", width)
    if not dino:
        pool = f"{name}.attn_pool"
        yield f"{pool}.latent", (1, 1, width)
        yield from _linear(f"{pool}.q", width, width)
        yield from _linear(f"{pool}.kv", width, 2 * width)
        yield from _linear(f"{pool}.proj", width, width)
        yield from _norm(f"{pool}.norm", width)
        yield from _linear(f"{pool}.mlp.fc1", width, mlp)
        yield from _linear(f"{pool}.mlp.fc2", mlp, width)


def _block_shapes(name: str, width: int, mlp: int, dino: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm1", width)
    yield from _linear(f"{name}.attn.qkv", width, 3 * width)
    yield from _linear(f"{name}.attn.proj", width, width)
    yield from _norm(f"{name}.norm2", width)
    yield from _linear(f"{name}.mlp.fc1", width, mlp)
    yield from _linear(f"{name}.mlp.fc2", mlp, width)
    if dino:
        yield f"{name}.ls1.scale_factor", (width,)
        yield f"{name}.ls2.scale_factor", (width,)


def _head_shapes(prefix: str, action_dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{prefix}layer_norm1", action_dim * D)
    yield from _linear(f"{prefix}fc1", action_dim * D, D)
    for block in range(2):
        yield from _norm(f"{prefix}mlp_resnet_blocks.{block}.ffn.0", D)
        yield from _linear(f"{prefix}mlp_resnet_blocks.{block}.ffn.1", D, D)
    yield from _norm(f"{prefix}layer_norm2", D)
    yield from _linear(f"{prefix}fc2", D, action_dim)


def _lora_pair(name: str, weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A and B of a linear layer, or of a convolution (rank first, then 1 x 1), as peft shapes them."""
    down = _draw(f"{name}.lora_A", (RANK, *weight.shape[1:]), seed)
    up = _draw(f"{name}.lora_B", (len(weight), RANK, *(1 for _ in weight.shape[2:])), seed)
    return down, 0.5 * up


def _adapter(weights: Mapping[str, Tensor], seed: int) -> State:
    """{layer.lora_A | lora_B.weight: tensor} for all linear layers and convolutions, the language head among them."""
    state: State = {}
    for name in _adapted(weights):
        layer = name.removesuffix(".weight")
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = _lora_pair(layer, weights[name], seed)
    return state


def _adapted(weights: Mapping[str, Tensor]) -> list[str]:
    return [
        name for name, w in weights.items() if name.endswith(".weight") and w.dim() > 1 and "embed_tokens" not in name
    ]


def _merged(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> State:
    state = dict(weights)
    for name in weights:
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in adapter:
            down, up = adapter[f"{layer}.lora_A.weight"], adapter[f"{layer}.lora_B.weight"]
            state[name] = weights[name] + LORA_SCALE * (up.flatten(1) @ down.flatten(1)).view_as(weights[name])
    return state


def _filmed(weights: Mapping[str, Tensor], seed: int) -> State:
    """The towers' state dict after LoRA and the FiLM wrapper: `block` between, `base_layer` and default adapters."""
    towers = {name: weight for name, weight in weights.items() if name.startswith("vision_backbone.")}
    adapted = _adapted(towers)
    state: State = {}
    for name, weight in towers.items():
        layer, _, kind = name.rpartition(".")
        wrapped = _wrapped(layer)
        if f"{layer}.weight" not in adapted:
            state[f"{wrapped}.{kind}"] = weight
            continue
        state[f"{wrapped}.base_layer.{kind}"] = weight
        if kind == "weight":
            down, up = _lora_pair(f"film.{layer}", weight, seed)
            state[f"{wrapped}.lora_A.default.weight"], state[f"{wrapped}.lora_B.default.weight"] = down, up
    for tower, width in zip(("featurizer", "fused_featurizer"), WIDTHS):
        for block in range(DEPTH):
            for part in ("scale", "shift"):
                name = f"vision_backbone.{tower}.blocks.{block}.{part}"
                state |= {key: 0.5 * _draw(key, shape, seed) for key, shape in _linear(name, D, width)}
    return state


def _wrapped(layer: str) -> str:
    """blocks.1.attn.qkv -> blocks.1.block.attn.qkv."""
    before, blocks, after = layer.partition(".blocks.")
    number, _, rest = after.partition(".")
    return f"{before}{blocks}{number}.block.{rest}" if blocks else layer


def _write_shards(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    names, files = list(weights), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: files[i >= len(names) // 2] for i, name in enumerate(names)}
    for file in files:
        shard = {name: weights[name].to(dtype).contiguous() for name in names if where[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(weight.numel() * dtype.itemsize for weight in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_adapter(folder: Path, adapter: Mapping[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    state = {f"base_model.model.{name}": weight.contiguous() for name, weight in adapter.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".")[-3] for name in adapter})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none"}
    config |= {"init_lora_weights": "gaussian", "target_modules": targets, "use_rslora": False, "use_dora": False}
    config |= {"auto_mapping": {"base_model_class": "OpenVLAForActionPrediction"}, "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _write_part(folder: Path, part: str, state: State, dtype: torch.dtype, wrapped: bool = True) -> None:
    """A component's state dict, with the prefix that distributed training leaves unless `wrapped` is False."""
    prefix = "module." if wrapped else ""
    plain = {prefix + name: weight.to(dtype) for name, weight in state.items()}
    torch.save(plain, folder / f"{part}--{STEP}_checkpoint.pt")


def _vocabulary() -> dict[str, int]:
    """Ids of the real tokenizer where the code asks for them: specials, bytes, the word boundary. Letters follow it."""
    letters = [chr(code) for code in range(33, 127)]
    return {
        **{"<unk>": 0, "<s>": 1, "</s>": 2, "▁I": 306, "▁": 29871, "<PAD>": 32000},
        **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)},
        **{letter: 29872 + i for i, letter in enumerate(letters)},
    }


def _tokenizer() -> dict[str, object]:
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 32000: "<PAD>"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    back = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in names.items()],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [*back, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {**model, "vocab": _vocabulary(), "merges": ["▁ I"]},
    }


def _write_json(folder: Path, action_dim: int, proprio_dim: int, seed: int) -> None:
    statistics = {STATISTICS_KEY: _statistics(action_dim, proprio_dim, seed)}
    files = {
        "config.json": _config(seed),
        "preprocessor_config.json": _preprocessor(),
        "processor_config.json": {"processor_class": "PrismaticProcessor"},
        "dataset_statistics.json": statistics,
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "padding_side": "right", "pad_token": "<PAD>"},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"},
        "added_tokens.json": {"<PAD>": 32000},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def _config(seed: int) -> dict[str, object]:
    """As published: the statistics within are those of pre-training, not of the fine-tuned data."""
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive",
        "image_sizes": [IMAGE, IMAGE],
        "llm_backbone_id": "llama2-7b-pure",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "pad_token_id": 32000,
        "pad_to_multiple_of": 64,
        "output_projector_states": False,
        "text_config": {
            "model_type": "llama",
            "hidden_size": D,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": LANGUAGE_HEADS,
            "num_key_value_heads": LANGUAGE_HEADS,
            "vocab_size": VOCABULARY,
            "pad_token_id": 32000,
            "torch_dtype": "bfloat16",
        },
        "norm_stats": {"bridge_orig": _statistics(7, 7, seed + 1)},
        "torch_dtype": "bfloat16",
    }


def _preprocessor() -> dict[str, object]:
    normalise = [{"inplace": False, "mean": mean, "std": std} for mean, std in zip(MEANS, STDS)]
    resize = {"antialias": True, "interpolation": 3, "max_size": None, "size": [IMAGE, IMAGE]}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, IMAGE, IMAGE], [3, IMAGE, IMAGE]],
        "interpolations": ["bicubic", "bicubic"],
        "means": MEANS,
        "stds": STDS,
        "tvf_crop_params": [{"output_size": [IMAGE, IMAGE]}] * 2,
        "tvf_normalize_params": normalise,
        "tvf_resize_params": [resize] * 2,
        "tvf_do_letterbox": False,
        "use_fused_vision_backbone": True,
    }


def _statistics(action_dim: int, proprio_dim: int, seed: int) -> dict[str, object]:
    """Quantiles and bounds; the last action, a gripper that is 0 or 1, is not normalised."""
    action, proprio = _column_statistics("action", action_dim, seed), _column_statistics("proprio", proprio_dim, seed)
    for name, value in (("min", 0.0), ("q01", 0.0), ("q99", 1.0), ("max", 1.0)):
        action[name][-1] = value
    action["mask"] = [True] * (action_dim - 1) + [False]
    return {"action": action, "proprio": proprio, "num_transitions": 52970, "num_trajectories": 432}


def _column_statistics(name: str, dim: int, seed: int) -> dict[str, list]:
    low, high = (
        -0.2 - _draw(f"{name} low", (1, dim), seed)[0].abs(),
        0.2 + _draw(f"{name} high", (1, dim), seed)[0].abs(),
    )
    columns = {"mean": (low + high) / 2, "std": (high - low) / 4, "min": 1.2 * low, "max": 1.2 * high}
    columns |= {"q01": low, "q99": high}
    return {key: column.tolist() for key, column in columns.items()}

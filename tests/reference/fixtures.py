"""What transformers, peft and bitsandbytes make of small random models, as files that Halfbyte's tests read without Python.

    fixtures.py OUT [MODEL]

models/NAME     a model folder, an adapter on all its linear layers, and expected.safetensors: token ids, logits, loss,
                the gradient of every tensor of the adapter, and where there are positions for it a greedy continuation
                of the first ids, in f32. With MODEL, that model is one of them.
stack/          model folders (also as bitsandbytes stores them), adapters of every kind, rows of text, and expected.json:
                losses of each combination over the rows, and the losses of trainings that begin with an adapter.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GptOssConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

ROPE = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8},
}
# A layer of either kind of attention, and nothing random in training.
NEO = {
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
    "resid_dropout": 0,
    "embed_dropout": 0,
    "attention_dropout": 0,
}
MULTIPLIERS = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 0.5,
}
# A layer with a window and one without, and norms, whose weights are what they are off 1.
GEMMA = {
    "head_dim": 8,
    "sliding_window": 5,
    "query_pre_attn_scalar": 12,
    "layer_types": ["sliding_attention", "full_attention"],
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
# Most of each head is rotated; beyond the original length, which a continuation passes, by other numbers.
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.5, 3.0, 6.0],
}
OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
# Attention, and both parameters that hold experts, and the router.
OSS_TARGETS = (
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"],
)
NEOX_ROPE = {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}
GPT2_DROPOUTS = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
# How many ids are continued greedily, and by how many.
PROMPT, NEW_TOKENS = 5, 64
WORDS = (
    "</s> ? the a cat dog bird fish sat ran flew swam on over under in mat hill tree sea and then slept all day red old "
    "big film good bad was"
).split()
ROWS = [
    "the old cat sat on the red mat and then slept all day",
    "a big dog ran over the hill",
    "the bird flew over the tree and the sea",
    "a red fish swam in the sea all day and then slept under a tree",
    "the film was good",
    "the old film was bad and the dog slept",
    "a bird sat on a big red tree",
    "the fish swam under the hill and over the cat",
]


def random_model(folder, config, seed):
    """A model whose weights are bf16 numbers, wide enough that every part matters to the loss."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight") or ".ln_" in name and name.endswith("weight"):
                weight.copy_(("gemma" not in config.model_type) + 0.3 * torch.randn_like(weight))
            elif weight.dim() == 1:
                weight.copy_(0.2 * torch.randn_like(weight))
            else:
                weight.copy_(0.15 * torch.randn_like(weight))
            if name.endswith("post_attention_layernorm.weight"):
                # Some channels are loud, as in real models, so that LLM.int8() finds outliers.
                weight[:2] *= 6
    model.to(torch.bfloat16).save_pretrained(folder)
    tidy(folder)


def tidy(folder):
    """Drops what says where and when a folder was made, and spaces between what is left."""
    for name in ("README.md", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*.json"):
        if path.is_symlink():
            continue
        content = json.loads(path.read_text())
        if path.name == "adapter_config.json":
            content["base_model_name_or_path"] = None
        for key in ("target_modules", "modules_to_save"):
            # Sets, which come in any order.
            if isinstance(content.get(key), list):
                content[key] = sorted(content[key])
        content.pop("_name_or_path", None)
        path.write_text(json.dumps(content, sort_keys=path.name != "tokenizer.json", separators=(",", ":")) + "\n")


def load(folder, quantised=False):
    options = {"device_map": "cpu"} if quantised else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False) if quantised else model


def random_adapter(base, folder, config, seed):
    torch.manual_seed(seed)
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_magnitude_vector" in name:
                weight.mul_(1 + 0.2 * torch.randn_like(weight))
            elif weight.requires_grad:
                # At B = 0 every gradient of A is zero and would prove nothing. Large models get a smaller change.
                weight.add_(min(0.1, 1 / weight.numel() ** 0.5) * torch.randn_like(weight))
    # A copy of the untouched embedding beside it is peft's default for some targets; it is not part of what was trained.
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy(folder)


def older_adapter(base, folder, seed):
    """As peft wrote it with transformers 4, where each expert's matrices were linear layers, and so was the router."""
    torch.manual_seed(seed)
    names = ["q_proj", "gate", "w1", "w2", "w3"]
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=names, inference_mode=True)
    config.save_pretrained(folder)
    tensors = {}
    with safe_open(base / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            module = name.removesuffix(".weight")
            if module.split(".")[-1] in names:
                out, inner = file.get_slice(name).get_shape()
                for part, shape in (("A", (2, inner)), ("B", (out, 2))):
                    tensors[f"base_model.model.{module}.lora_{part}.weight"] = 0.1 * torch.randn(shape)
    save_file(tensors, folder / "adapter_model.safetensors")
    tidy(folder)


def model_case(out, name, config, seed, target="all-linear", parameters=None):
    folder = out / "models" / name
    random_model(folder, config, seed)
    expect(folder, config.vocab_size, 12, seed, {"target_modules": target, "target_parameters": parameters})


def with_packed_experts(folder, seed):
    """Gives a gpt-oss experts whose numbers MXFP4 has, and returns them as it has them."""
    generator = torch.Generator().manual_seed(seed)
    path = folder / "model.safetensors"
    state, packed = load_file(path), {}
    for name, weight in sorted(state.items()):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inner, outer = weight.shape
            some = {"generator": generator, "dtype": torch.uint8}
            blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), **some)
            scales = torch.randint(122, 125, (experts, outer, inner // 32), **some)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            state[name] = convert_moe_packed_tensors(blocks, scales).contiguous()
            assert state[name].shape == weight.shape
    save_file(state, path, {"format": "pt"})
    return packed


def pack_experts(folder, packed):
    """Puts packed experts in the place of those that they are."""
    state = load_file(folder / "model.safetensors")
    kept = {name: it for name, it in state.items() if f"{name}_blocks" not in packed}
    save_file(kept | packed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    (folder / "config.json").write_text(json.dumps(config, sort_keys=True, separators=(",", ":")) + "\n")


def existing_model_case(out, model):
    folder = out / "models" / "existing"
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (folder / file.name).symlink_to(file.resolve())
    expect(folder, json.loads((model / "config.json").read_text())["vocab_size"], 48, 9)


def expect(folder, vocab_size, time, seed, target={"target_modules": "all-linear"}):
    random_adapter(folder, folder / "adapter", {"r": 2, "lora_alpha": 3, **target}, seed)
    model = PeftModel.from_pretrained(load(folder), folder / "adapter", is_trainable=True).train()
    torch.manual_seed(seed)
    ids = torch.randint(2, vocab_size, (2, time))
    mask = torch.ones_like(ids)
    mask[1, time - 4 :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    found = model(input_ids=ids, attention_mask=mask, labels=labels)
    found.loss.backward()
    tensors = {"ids": ids, "mask": mask, "logits": found.logits.detach(), "loss": found.loss.detach()}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            tensors["grad." + name.replace(".default", "").removeprefix("base_model.model.")] = weight.grad
    positions = getattr(model.config, "max_position_embeddings", 0)
    if PROMPT + NEW_TOKENS <= positions < 1000:
        tensors["greedy"] = greedy(model.eval(), ids[:1, :PROMPT])
    save_file({name: it.contiguous() for name, it in tensors.items()}, folder / "expected.safetensors")


def greedy(model, ids):
    """The continuation with a cache. Fails if one without differs, or if any choice was too close to be told apart by f32."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        found = model.generate(input_ids=ids, use_cache=True, **options)
        again = model.generate(input_ids=ids, use_cache=False, **options)
        best = model(input_ids=found).logits[0, PROMPT - 1 : -1].topk(2).values
    assert torch.equal(found, again), (found, again)
    assert (best[:, 0] - best[:, 1]).min() > 1e-4, best
    return found[:, PROMPT:]


def decoder_cases(out):
    """The architectures that are rows of a table: each with what tells it from LLaMA."""
    sizes = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }
    # A window that is shorter than the rows, and heads that are wider than hidden / heads.
    model_case(out, "mistral", MistralConfig(**sizes, sliding_window=5, head_dim=6), 13)
    model_case(out, "qwen2", Qwen2Config(**sizes, tie_word_embeddings=True), 14)
    # Only layers from `max_window_layers` on have the window.
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    model_case(out, "qwen2-window", Qwen2Config(**sizes, **window), 15)
    model_case(out, "qwen3", Qwen3Config(**sizes, head_dim=8), 16)
    # A layer that is not rotated, and has a window.
    smollm = {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 5, "attention_bias": True}
    model_case(out, "smollm3", SmolLM3Config(**sizes, **smollm, pad_token_id=0), 40)
    model_case(out, "granite", GraniteConfig(**sizes, **MULTIPLIERS, mlp_bias=True), 41)
    model_case(out, "olmo2", Olmo2Config(**sizes, attention_bias=True), 42)
    # Scores and logits near their caps, and a scale that is not the root of the heads' channels.
    model_case(out, "gemma2", Gemma2Config(**sizes, **GEMMA, **CAPS), 43)
    del sizes["rope_parameters"]
    model_case(out, "gemma3", Gemma3TextConfig(**sizes, **GEMMA, rope_parameters=TWO_ROPES, final_logit_softcapping=4.0), 44)
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "rope_parameters": LONG_ROPE}
    model_case(out, "phi3", Phi3Config(**sizes, original_max_position_embeddings=40), 45)
    model_case(out, "phi3-long", Phi3Config(**sizes, original_max_position_embeddings=8, sliding_window=5), 46)


def expert_cases(out):
    """Mixtures of experts, whose loss holds the one that keeps experts equally busy."""
    sizes = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }
    balanced = {"output_router_logits": True, "router_aux_loss_coef": 0.3}
    model_case(out, "mixtral", MixtralConfig(**sizes, **balanced, num_local_experts=5, sliding_window=5), 60)
    few = {"head_dim": 8, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
    # Not every block has experts.
    three = {**sizes, "num_hidden_layers": 3, "mlp_only_layers": [1], "norm_topk_prob": True, "attention_bias": True}
    window = {"use_sliding_window": True, "sliding_window": 5}
    model_case(out, "qwen3-moe", Qwen3MoeConfig(**three, **few, **balanced, **window), 61)
    model_case(out, "qwen3-moe-step", Qwen3MoeConfig(**sizes, **few, decoder_sparse_step=2), 62)
    # Limits that are reached, and wavelengths on either side of the ramp.
    limits = {"swiglu_limit": 0.4, "swiglu_alpha": 1.3, "num_local_experts": 5, "num_experts_per_tok": 2}
    oss = {**sizes, **balanced, **limits, "head_dim": 8, "sliding_window": 5, "rope_parameters": OSS_ROPE}
    model_case(out, "gpt-oss", GptOssConfig(**oss), 68, OSS_TARGETS[0], OSS_TARGETS[1])


def model_cases(out):
    llama = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8,
    }
    for seed, (name, rope) in enumerate(ROPE.items()):
        odd = seed % 2 == 1
        config = LlamaConfig(**llama, rope_parameters=rope, tie_word_embeddings=odd, attention_bias=odd, mlp_bias=odd)
        model_case(out, f"llama-{name}", config, seed)
    # A head size that is not hidden / heads, and as many key heads as query heads.
    config = LlamaConfig(**{**llama, "num_key_value_heads": 4, "max_position_embeddings": 64}, head_dim=6)
    model_case(out, "llama-head-dim", config, 7)
    config = GPTNeoConfig(**NEO, vocab_size=24, hidden_size=16, intermediate_size=16, max_position_embeddings=16)
    model_case(out, "gpt-neo", config, 8)
    decoder_cases(out)
    expert_cases(out)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    neox = {"max_position_embeddings": 128, "rope_parameters": NEOX_ROPE}
    model_case(out, "gpt-neox", GPTNeoXConfig(**sizes, **neox), 47)
    serial = {"use_parallel_residual": False, "hidden_act": "gelu_fast", "attention_bias": False, "tie_word_embeddings": True}
    model_case(out, "gpt-neox-serial", GPTNeoXConfig(**sizes, **neox, **serial), 48)
    two = {"vocab_size": 24, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 2, "n_positions": 128}
    model_case(out, "gpt2", GPT2Config(**two, **GPT2_DROPOUTS), 49)
    # A part of every head is rotated.
    model_case(out, "gptj", GPTJConfig(**two, rotary_dim=4), 66)


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="?")
    tokenizer.save_pretrained(folder)
    tidy(folder)


def batches(rows):
    """Rows of token ids, two a batch, padded on the right; labels without the padding."""
    ids = [[WORDS.index(word) for word in row.split()] for row in rows]
    for at in range(0, len(ids), 2):
        pair = ids[at : at + 2]
        time = max(map(len, pair))
        tokens = torch.tensor([row + [0] * (time - len(row)) for row in pair])
        mask = torch.tensor([[1] * len(row) + [0] * (time - len(row)) for row in pair])
        yield tokens, mask, tokens.masked_fill(mask == 0, -100)


def mean_loss(model):
    """Over all predicted tokens of all rows; without what keeps experts busy, which is no mean over tokens."""
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False
    total, count = 0.0, 0
    for ids, mask, labels in batches(ROWS):
        n = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=ids, attention_mask=mask, labels=labels).loss.item() * n
        count += n
    return total / count


def evaluate(base, adapter=None, quantised=False, int8=False):
    model = load(base, quantised)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    if int8:
        # Without gradients bitsandbytes multiplies in 8 bits on a CPU, too.
        with torch.no_grad():
            return mean_loss(model.eval())
    # In training mode: in evaluation bitsandbytes repacks 4-bit weights for the CPU and rounds their scales to bf16.
    return mean_loss(model.train())


def train(base, adapter, steps, quantised=False):
    model = PeftModel.from_pretrained(load(base, quantised), adapter, is_trainable=True).train()
    trained = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    losses = []
    while len(losses) < steps:
        for ids, mask, labels in batches(ROWS):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(round(loss.item(), 6))
    return losses[:steps]


def stack_cases(out):
    stack = out / "stack"
    llama = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    neo = GPTNeoConfig(
        **NEO,
        vocab_size=len(WORDS),
        hidden_size=24,
        intermediate_size=24,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    small = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": 0,
        "bos_token_id": None,
    }
    decoders = [
        ("mistral", MistralConfig(**small, head_dim=12, sliding_window=6), 17),
        ("qwen2", Qwen2Config(**small, tie_word_embeddings=True), 18),
        ("qwen3", Qwen3Config(**small, head_dim=16), 19),
        ("smollm3", SmolLM3Config(**small, no_rope_layer_interval=2, pad_token_id=0), 50),
        ("granite", GraniteConfig(**small, **{**MULTIPLIERS, "logits_scaling": 2.0}), 51),
        ("olmo2", Olmo2Config(**small), 52),
        ("gemma2", Gemma2Config(**small, **GEMMA, **{**CAPS, "final_logit_softcapping": 8.0}), 53),
        ("gemma3", Gemma3TextConfig(**small, **GEMMA), 54),
        ("phi3", Phi3Config(**small, pad_token_id=0, rope_parameters={**LONG_ROPE, "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}), 55),
    ]
    sizes = {key: small[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    ends = {"eos_token_id": 0, "bos_token_id": None}
    two = {"vocab_size": len(WORDS), "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
    decoders += [
        ("gpt-neox", GPTNeoXConfig(**sizes, max_position_embeddings=64, rope_parameters=NEOX_ROPE, **ends), 56),
        ("gpt2", GPT2Config(**two, **GPT2_DROPOUTS, **ends), 57),
    ]
    experts = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.05}
    decoders += [
        ("mixtral", MixtralConfig(**small, **experts, num_local_experts=4), 63),
        ("qwen3-moe", Qwen3MoeConfig(**small, **experts, head_dim=16, num_experts=6, moe_intermediate_size=16), 64),
        ("gptj", GPTJConfig(**two, rotary_dim=4, **ends), 67),
    ]
    oss = {**small, **experts, "intermediate_size": 64, "num_local_experts": 4, "head_dim": 16, "swiglu_limit": 1.5}
    oss = GptOssConfig(**oss, sliding_window=6, rope_parameters=OSS_ROPE)
    decoders += [("gpt-oss", oss, 69), ("gpt-oss-mxfp4", oss, 70)]
    for name, config, seed in [("llama", llama, 11), ("gpt-neo", neo, 12), *decoders]:
        random_model(stack / name, config, seed)
        write_tokenizer(stack / name)
    packed = with_packed_experts(stack / "gpt-oss-mxfp4", 71)
    quantised = {
        "llama-nf4-double": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
        ),
        "llama-fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        "llama-int8": BitsAndBytesConfig(load_in_8bit=True),
    }
    for name, config in quantised.items():
        # bitsandbytes decodes to the dtype it quantised from in the backward pass, but not in the forward pass; in f32 both
        # see the same weights.
        dtype = torch.float32 if name == "llama-nf4-double" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(
            stack / "llama", dtype=dtype, quantization_config=config, device_map="cpu"
        )
        model.save_pretrained(stack / name)
        tidy(stack / name)
        write_tokenizer(stack / name)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = {
        "lora": ("llama", {"r": 2, "lora_alpha": 4, "target_modules": linear}),
        "patterns": (
            "llama",
            {
                "r": 2,
                "lora_alpha": 3,
                "use_rslora": True,
                "target_modules": ["q_proj", "v_proj"],
                "rank_pattern": {"v_proj": 3},
                "alpha_pattern": {"q_proj": 5},
            },
        ),
        "dora": ("llama", {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": linear}),
        "saved-head": ("llama", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        "bias-all": ("gpt-neo", {"r": 2, "lora_alpha": 4, "bias": "all", "target_modules": ["q_proj", "c_fc"]}),
        "bias-lora-only": ("gpt-neo", {"r": 2, "lora_alpha": 4, "bias": "lora_only", "target_modules": ["out_proj", "c_proj"]}),
        "embeddings": ("gpt-neo", {"r": 2, "lora_alpha": 4, "target_modules": ["wte", "wpe", "q_proj"]}),
        "neo-all": ("gpt-neo", {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}),
        **{f"{name}-all": (name, {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}) for name, _, _ in decoders},
    }
    for name in ("gpt-oss-all", "gpt-oss-mxfp4-all"):
        adapters[name][1].update(target_modules=OSS_TARGETS[0], target_parameters=OSS_TARGETS[1])
    for seed, (name, (base, config)) in enumerate(adapters.items(), 20):
        random_adapter(stack / base, stack / "adapters" / name, config, seed)
    older_adapter(stack / "mixtral", stack / "adapters" / "mixtral-older", 65)
    adapters["mixtral-older"] = ("mixtral", {})
    losses = [{"base": name, "loss": evaluate(stack / name)} for name in ("llama", "gpt-neo", *(it[0] for it in decoders))]
    for name in quantised:
        losses.append({"base": name, "loss": evaluate(stack / name, None, True, name == "llama-int8")})
    for name, (base, _) in adapters.items():
        losses.append({"base": base, "adapter": name, "loss": evaluate(stack / base, stack / "adapters" / name)})
    losses.append(
        {
            "base": "llama-nf4-double",
            "adapter": "lora",
            "loss": evaluate(stack / "llama-nf4-double", stack / "adapters/lora", True),
        }
    )
    runs = [("llama", "lora"), ("llama", "dora"), ("gpt-neo", "neo-all"), ("gpt-neo", "bias-all"), ("gpt-neo", "embeddings"), ("llama-nf4-double", "lora")]
    runs += [(name, f"{name}-all") for name, _, _ in decoders]
    trainings = [
        {"base": base, "adapter": name, "losses": train(stack / base, stack / "adapters" / name, 100, "nf4" in base)}
        for base, name in runs
    ]
    pack_experts(stack / "gpt-oss-mxfp4", packed)
    (stack / "expected.json").write_text(json.dumps({"losses": losses, "trainings": trainings}) + "\n")
    (stack / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))


def main():
    out = Path(sys.argv[1])
    for part in ("models", "stack"):
        shutil.rmtree(out / part, ignore_errors=True)
    model_cases(out)
    if len(sys.argv) > 2:
        existing_model_case(out, Path(sys.argv[2]))
    stack_cases(out)


if __name__ == "__main__":
    main()

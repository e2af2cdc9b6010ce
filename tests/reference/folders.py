"""Model folders as no single tool writes them, and what transformers and peft make of each.

    folders.py OUT COUNT SEED

Every folder OUT/NNN has a model, a tokenizer and rows of text; some have an adapter (OUT/NNN/adapter). Configurations are
changed after the weights were made, with keys left out, null, spelt as years ago, or of odd values. OUT/expected.json says for each what came of it:
tokens and loss in f32, or why it was refused. Folders whose weights transformers would partly make up count as refused.
"""

import json
import math
import random
import shutil
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import GPTNeoConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

OUT, COUNT, SEED = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ROWS = [
    "the cat sat on the mat and then ran",
    "a dog ran over the hill <|im|> all day",
    "The big red film was good </s> the old one bad",
    "fish swam in the sea, it's all",
    "bird <pad> flew under a tree and slept on the hill all day and the cat sat on the big old mat then",
]
WORDS = ["<unk>", "<s>", "</s>"] + sorted(set(" ".join(ROWS).replace(",", " ,").split()) - {"<|im|>", "</s>", "<pad>"})


def bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(ROWS * 4, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def words():
    tokenizer = Tokenizer(models.WordLevel({it: i for i, it in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def tokenizer(folder, rng, family):
    """Writes the tokenizer's files; the size of its vocabulary."""
    kind = rng.choice(["words", "bytes", "bytes", "older"])
    made = words() if kind == "words" else bpe()
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    size = made.get_vocab_size()
    if kind == "older" and family in ["gpt_neo", "qwen2", "qwen3"]:
        model = json.loads(made.to_str())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(it) + "\n" for it in model["merges"]))
        config["tokenizer_class"] = "GPT2Tokenizer" if family == "gpt_neo" else "Qwen2Tokenizer"
    else:
        if rng.random() < 0.5:
            single = rng.choice(["<s> $A", "$A </s>", "<s> $A </s>"])
            ids = [("<s>", 1), ("</s>", 2)]
            made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
        made.add_special_tokens(rng.sample(["<unk>", "<s>", "</s>"], rng.randint(0, 3)))
        if rng.random() < 0.2:
            made.enable_truncation(4)
        if rng.random() < 0.2:
            made.enable_padding(length=40, pad_token="</s>", pad_id=2)
        made.save(str(folder / "tokenizer.json"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    choices = {
        "add_bos_token": [True, False, None],
        "add_eos_token": [True, False, None],
        "pad_token": ["<pad>", "</s>", None, {"__type": "AddedToken", "content": "<pad>", "special": True}],
        "additional_special_tokens": [["<|im|>"], [], None],
        "extra_special_tokens": [["<|im|>"], {"image_token": "<|im|>"}],
        "mask_token": ["<|im|>", "<mask>"],
        "split_special_tokens": [True, False],
        "padding_side": ["left", "right"],
        "model_max_length": [8, 10**30, None],
        "clean_up_tokenization_spaces": [True, False],
        "legacy": [True, False, None],
        "made_up": [1],
    }
    for key in rng.sample(list(choices), rng.randint(0, 4)):
        config[key] = rng.choice(choices[key])
    added = rng.random()
    if added < 0.2:
        token = {"content": "<|im|>", "special": rng.random() < 0.5, "normalized": False}
        config["added_tokens_decoder"] = {str(size): token | {"lstrip": rng.random() < 0.3, "rstrip": False, "single_word": False}}
    elif added < 0.35:
        (folder / "added_tokens.json").write_text(json.dumps({"<|im|>": size}))
    if rng.random() < 0.2:
        moved = {key: config.pop(key) for key in ["eos_token", "pad_token"] if key in config}
        (folder / "special_tokens_map.json").write_text(json.dumps(moved))
    # Without a word on it transformers takes the kind of tokenizer that is usual for the type of model.
    if kind == "words" or rng.random() < 0.9:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return size + 4


def rope(rng):
    kinds = {
        "default": {},
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "llama3": {
            "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    }
    kind = rng.choice(list(kinds))
    return {"rope_type": kind} | kinds[kind]


def configuration(rng, vocab):
    """A configuration that makes sense, and the name of its family."""
    family = rng.choice(["llama", "llama", "mistral", "qwen2", "qwen3", "gpt_neo"])
    layers, heads = rng.choice([1, 2]), rng.choice([2, 4])
    common = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": rng.choice([32, 48]), "bos_token_id": 1,
              "eos_token_id": 2, "max_position_embeddings": rng.choice([64, 128]), "tie_word_embeddings": rng.random() < 0.4}
    if family == "gpt_neo":
        return family, GPTNeoConfig(**common, num_layers=layers, num_heads=heads, window_size=rng.choice([4, 16]),
                                    attention_types=[[["global"] if layers == 1 else ["global", "local"], 1]])
    common |= {"num_hidden_layers": layers, "num_attention_heads": heads, "rms_norm_eps": rng.choice([1e-6, 1e-5]),
               "num_key_value_heads": rng.choice([heads, heads // 2]),
               "rope_parameters": rope(rng) | {"rope_theta": rng.choice([10000.0, 500.0])}}
    if family == "llama":
        bias = {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
        return family, LlamaConfig(**common, **bias, head_dim=rng.choice([None, 8, 16]))
    if family == "mistral":
        return family, MistralConfig(**common, sliding_window=rng.choice([None, 4, 100]))
    window = {"use_sliding_window": rng.random() < 0.5, "sliding_window": rng.choice([4, 8]), "max_window_layers": rng.choice([0, 1])}
    if family == "qwen2":
        return family, Qwen2Config(**common, **window)
    return family, Qwen3Config(**common, **window, head_dim=rng.choice([8, 16]), attention_bias=rng.random() < 0.3)


def change(config, rng, family):
    """Spells a config.json as years ago, leaves keys out, or gives them odd values."""
    parameters = config.get("rope_parameters")
    if parameters and rng.random() < 0.5:
        config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        if parameters["rope_type"] != "default" or rng.random() < 0.3:
            if rng.random() < 0.5:
                parameters["type"] = parameters.pop("rope_type")
            config["rope_scaling"] = parameters
    if "layer_types" in config and rng.random() < 0.7:
        config.pop("layer_types")
    if "attention_layers" in config and rng.random() < 0.5:
        config.pop("attention_layers")
    values = {
        "hidden_act": ["silu", "swish", "gelu", "relu"],
        "activation_function": ["gelu_new", "gelu"],
        "tie_word_embeddings": [True, False, None],
        "torch_dtype": ["float16", "float32"],
        "dtype": [None, "bfloat16"],
        "attention_dropout": [0.0, 0.1, None],
        "num_key_value_heads": [None, 1, 2],
        "head_dim": [None, 8],
        "attention_bias": [None, False, True],
        "mlp_bias": [None, False],
        "sliding_window": [None, 4],
        "use_sliding_window": [True, False],
        "max_window_layers": [0, 1, 28],
        "rope_scaling": [None, {}, {"type": "linear", "factor": 3.0}, {"rope_type": "default"}, {"factor": 2.0}],
        "rope_theta": [100.0, 1e6, None],
        "partial_rotary_factor": [1.0, 0.5],
        "rms_norm_eps": [1e-3, None],
        "layer_norm_epsilon": [1e-3, None],
        "window_size": [2, 8],
        "pad_token_id": [None, 0, -1],
        "eos_token_id": [None, [2, 1], 2],
        "use_cache": [False],
        "pretraining_tp": [1, 2],
        "max_position_embeddings": [64, 128, None],
        "architectures": [None, ["LlamaForCausalLM"], [family]],
        "num_attention_heads": [2, 4],
        "temperature": [0.5],
        "logit_scale": [2.0],
        "residual_multiplier": [0.5],
        "initializer_range": [0.5],
        "original_max_position_embeddings": [8, 32],
    }
    for key in rng.sample(list(values), rng.choice([0, 1, 1, 2, 3])):
        if rng.random() < 0.8:
            config[key] = rng.choice(values[key])
        else:
            config.pop(key, None)
    return config


def weights(folder, model, rng):
    """Writes the tensors, under other names and in other files than usual."""
    tensors = {name: it.clone().contiguous() for name, it in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tied = rng.random()
        if tied < 0.5:
            tensors.pop("lm_head.weight", None)
        elif tied < 0.7:
            tensors["lm_head.weight"] = torch.randn_like(tensors["lm_head.weight"])
    prefix = rng.random()
    if prefix < 0.1:
        body = "transformer." if model.config.model_type == "gpt_neo" else "model."
        tensors = {name.removeprefix(body): it for name, it in tensors.items()}
    if rng.random() < 0.1:
        tensors["v_head.summary.weight"] = torch.randn(1, 32)
    dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
    tensors = {name: it.to(dtype) for name, it in tensors.items()}
    kind = rng.choice(["safetensors", "safetensors", "shards", "torch", "torch shards"])
    if "shards" not in kind:
        parts = [("", tensors)]
    else:
        names = sorted(tensors)
        half = len(names) // 2
        parts = [(f"-0000{i + 1}-of-00002", {it: tensors[it] for it in part}) for i, part in enumerate([names[:half], names[half:]])]
    stem, end = ("pytorch_model", ".bin") if "torch" in kind else ("model", ".safetensors")
    index = {}
    for number, part in parts:
        name = f"{stem}{number}{end}"
        if end == ".bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    if "shards" in kind:
        (folder / f"{stem}{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def adapter(folder, model, rng, family):
    """Puts an adapter beside some models."""
    if rng.random() < 0.6:
        return
    targets = [["q_proj", "v_proj"], ["q_proj"], "all-linear", r".*\.(q_proj|k_proj)", None]
    config = LoraConfig(
        r=rng.choice([2, 4]), lora_alpha=rng.choice([4, 8, 3]), target_modules=rng.choice(targets), task_type="CAUSAL_LM",
        use_rslora=rng.random() < 0.3, use_dora=rng.random() < 0.3, bias=rng.choice(["none", "none", "all", "lora_only"]),
        modules_to_save=rng.choice([None, None, ["lm_head"]]), lora_dropout=rng.choice([0.0, 0.1]),
        rank_pattern=rng.choice([{}, {"q_proj": 3}]), alpha_pattern=rng.choice([{}, {"v_proj": 5}]),
    )
    try:
        tuned = get_peft_model(model, config)
        for name, it in tuned.named_parameters():
            if it.requires_grad:
                it.data += 0.05 * torch.randn_like(it)
        tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
    except Exception:
        shutil.rmtree(folder / "adapter", ignore_errors=True)


def loss(folder):
    """What transformers makes of a folder."""
    tokens = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager")
    made_up = sorted(info["missing_keys"])
    if made_up:
        raise ValueError(f"weights would be made up: {made_up[:3]}")
    if (folder / "adapter").exists():
        model = PeftModel.from_pretrained(model, folder / "adapter")
    model.eval()
    total, count = 0.0, 0
    for row in ROWS:
        ids = torch.tensor([tokens(row, truncation=False, padding=False)["input_ids"]])
        if ids.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = model(ids).logits[0].double()
        total += torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    if not math.isfinite(total):
        raise ValueError("the loss is no number")
    return {"tokens": count, "loss": total / count, "unused": sorted(info["unexpected_keys"])[:3]}


def make(folder, rng):
    folder.mkdir(parents=True)
    state = rng.getstate()
    family, _ = configuration(rng, 8)
    rng.setstate(state)
    vocab = tokenizer(folder, rng, family)
    rng.setstate(state)
    family, config = configuration(rng, vocab)
    rng.random()
    model = AutoModelForCausalLM.from_config(config)
    for it in model.parameters():
        it.data = 0.3 * torch.randn_like(it) + (1.0 if it.dim() == 1 else 0.0)
    model.tie_weights()
    written = config.to_dict() | {"architectures": [type(model).__name__]}
    weights(folder, model, rng)
    (folder / "config.json").write_text(json.dumps(change(json.loads(json.dumps(written)), rng, family)))
    adapter(folder, model, rng, family)
    lines = "".join(json.dumps({"text": row}) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines)


warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
expected = {}
for n in range(COUNT):
    rng = random.Random(SEED * 1_000_003 + n)
    torch.manual_seed(SEED * 1_000_003 + n)
    folder = OUT / f"{n:03}"
    make(folder, rng)
    try:
        expected[folder.name] = loss(folder)
    except Exception as error:
        expected[folder.name] = {"refused": f"{type(error).__name__}: {error}"[:300]}
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1))
print(json.dumps({"folders": len(expected)}))

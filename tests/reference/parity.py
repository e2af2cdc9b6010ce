"""transformers + peft + bitsandbytes at the comparisons of `cargo xtask parity`. Each task prints one JSON object as its last
line.
"""

import argparse
import json
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def load(args, dtype=None):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = dtype or DTYPES[args.dtype]
    options = {"dtype": dtype}
    if args.quant == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif args.quant in ("nf4", "nf4-double", "fp4"):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=args.quant[:3],
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=args.quant == "nf4-double",
        )
    if args.quant != "none":
        options["device_map"] = "cpu"
    model = AutoModelForCausalLM.from_pretrained(args.model, **options)
    if args.quant == "stored":
        import bitsandbytes
        from peft import prepare_model_for_kbit_training

        # A stored model keeps its embeddings and norms in its own dtype, whatever was asked for.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        # A checkpoint says what its products are computed in; what is compared here is the weights.
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.compute_dtype, module.compute_type_is_set = dtype, True
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter, is_trainable=args.task == "train")
    return model


def tokenizer_of(args):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(args.tokenizer or args.model)


def rows_of(args, count):
    """The first rows of a file as token ids, cut to --max-length."""
    import pandas

    frame = pandas.read_parquet(args.data) if args.data.endswith("parquet") else pandas.read_json(args.data, lines=True)
    tokenizer = tokenizer_of(args)
    return [tokenizer(text)["input_ids"][: args.max_length] for text in frame["text"][:count]]


def batch_of(rows):
    time = max(map(len, rows))
    ids = torch.tensor([row + [0] * (time - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (time - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def loss(args):
    model = load(args)
    int8 = args.quant == "int8" or args.int8
    if args.quant != "none" and not int8:
        # Without gradients bitsandbytes repacks 4-bit weights for the CPU and rounds their scales to bf16.
        model.train().enable_input_require_grads()
    elif int8:
        # With them it computes 8-bit products in floating point.
        model.eval()
    rows = rows_of(args, args.rows)
    total, count = 0.0, 0
    with torch.set_grad_enabled(args.quant != "none" and not int8):
        for at in range(0, len(rows), args.batch):
            batch = batch_of(rows[at : at + args.batch])
            n = int((batch["labels"][:, 1:] != -100).sum())
            total += model(**batch).loss.item() * n
            count += n
    return {"loss": total / count, "tokens": count}


def greedy(args):
    model, tokenizer = load(args, torch.float32).eval(), tokenizer_of(args)
    texts = []
    for prompt in json.loads(Path(args.prompts).read_text()):
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            found = model.generate(**ids, max_new_tokens=args.tokens, do_sample=False)
        texts.append(tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return {"texts": texts}


def start(args):
    """Writes a fresh adapter, from which both sides then train."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load(args), config).save_pretrained(args.out)
    return {}


def train(args):
    model = load(args).train()
    if args.quant != "none":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" in name)
    trained = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    rows = rows_of(args, args.steps * args.batch)
    losses = []
    for step in range(args.steps):
        batch = batch_of(rows[step * args.batch : (step + 1) * args.batch])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            found = model(**batch).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.item())
    return {"losses": losses}


def quantize(args):
    load(args).save_pretrained(args.out)
    tokenizer_of(args).save_pretrained(args.out)
    return {}


def random_neo(args):
    """A GPT-Neo of 8 M parameters with the vocabulary of another model."""
    from transformers import AutoModelForCausalLM, GPTNeoConfig

    tokenizer = tokenizer_of(args)
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=32,
        max_position_embeddings=256,
        resid_dropout=0,
        embed_dropout=0,
        attention_dropout=0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    return {}


def main():
    tasks = {
        "loss": loss,
        "greedy": greedy,
        "start": start,
        "train": train,
        "quantize": quantize,
        "random-neo": random_neo,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(tasks))
    parser.add_argument("--model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--adapter")
    parser.add_argument("--data")
    parser.add_argument("--quant", choices=["none", "stored", "int8", "nf4", "nf4-double", "fp4"], default="none")
    parser.add_argument("--dtype", choices=list(DTYPES), default="f32")
    parser.add_argument("--int8", action="store_true", help="the stored model is in 8 bits")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.manual_seed(42)
    print(json.dumps(tasks[args.task](args)))


if __name__ == "__main__":
    main()
